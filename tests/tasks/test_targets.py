"""Losses must compare each prediction with its own target: shapes and kinds of targets."""

import functools
import pickle

import pytest
import torch
from contracts import ENGINES
from torch import Tensor, nn
from torch.nn import functional as F

import trlearner as tr
from trlearner.tasks.loss import task_loss
from trlearner.tasks.targets import Misfit, check_targets


def squares(p: Tensor, y: Tensor) -> Tensor:
    return (p - y).square().mean()


def gaussian(p: Tensor, y: Tensor) -> Tensor:
    return F.gaussian_nll_loss(p[:, 0], y, p[:, 1].square() + 0.1)


def deviation(p: Tensor, y: Tensor) -> Tensor:
    """Compares spreads: the order of samples is of no consequence, on purpose."""
    return (p.std() - y.std()).square()


def quantiles(p: Tensor, y: Tensor) -> Tensor:
    error = y[:, None] - p
    return torch.maximum(0.1 * error, -0.9 * error).mean()


BROADCAST = (
    r"loss_fn broadcasts predictions \[{}\] and targets \[{}\] of one task to \[{}\].*"
    "Give both one shape"
)


@pytest.mark.parametrize(
    ("loss_fn", "p", "y", "both"),
    [
        (squares, (5,), (5, 1), "5, 5"),
        (squares, (5, 1), (5,), "5, 5"),
        (squares, (2,), (2, 1), "2, 2"),
        (squares, (3,), (3, 3), "3, 3"),
        (squares, (3, 3), (3,), "3, 3"),
        (squares, (1, 4, 1), (1, 4), "1, 4, 4"),
        (lambda p, y: (p - y).abs().mean().sqrt(), (5,), (5, 1), "5, 5"),
        (F.mse_loss, (5,), (5, 1), "5, 5"),
        (nn.L1Loss(), (5, 1), (5,), "5, 5"),
        (functools.partial(F.huber_loss, delta=0.5), (5,), (5, 1), "5, 5"),
    ],
)
def test_a_loss_that_broadcasts_across_samples_is_refused(loss_fn, p, y, both):
    match = BROADCAST.format(str(list(p))[1:-1], str(list(y))[1:-1], both)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for _ in range(2):  # a refusal is not forgotten
            with pytest.raises(Misfit, match=match):
                task_loss(loss_fn, torch.rand(p).to(dtype), torch.rand(y).to(dtype))


def test_numbers_as_integers_are_broadcast_as_well():
    with pytest.raises(Misfit, match=BROADCAST.format("5", "5, 1", "5, 5")):
        task_loss(squares, torch.rand(5), torch.ones(5, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("loss_fn", "p", "y"),
    [
        (squares, (5,), (5,)),
        (squares, (5, 3), (5, 1)),  # of one sample each, on purpose
        (squares, (1,), (1, 1)),
        (lambda p, y: squares(p.squeeze(-1), y.squeeze(-1)), (5,), (5, 1)),
        (lambda p, y: squares(p, y.reshape(p.shape)), (5, 1), (5,)),
        (gaussian, (2, 2), (2,)),
        (gaussian, (5, 2), (5,)),
        (deviation, (5,), (5, 1)),
        (quantiles, (3, 3), (3,)),
        (lambda p, y: squares(p.mean(-1), y), (3, 3), (3,)),
        (lambda p, y: squares(p, y[:, None].expand_as(p)), (3, 3), (3,)),
        (lambda p, y: p.square().mean(), (5,), (5, 1)),
        (F.binary_cross_entropy_with_logits, (5,), (5,)),
    ],
)
def test_a_loss_that_takes_its_shapes_on_purpose_is_not(loss_fn, p, y):
    p, y = torch.rand(p), torch.rand(y)
    assert torch.equal(task_loss(loss_fn, p, y), loss_fn(p, y))


@pytest.mark.parametrize("samples", [3, 4, 5])
def test_nor_are_labels(samples: int):
    p, y = torch.rand(samples, samples), torch.arange(samples)
    assert torch.equal(task_loss(F.cross_entropy, p, y), F.cross_entropy(p, y))
    assert torch.equal(
        task_loss(lambda p, y: F.cross_entropy(p, y.squeeze(-1)), p, y[:, None]),
        F.cross_entropy(p, y),
    )
    dense = torch.rand(samples, 2, samples), torch.ones(samples, samples, dtype=torch.long)
    assert torch.equal(task_loss(F.cross_entropy, *dense), F.cross_entropy(*dense))


def test_a_loss_is_tried_once_for_each_shape_and_leaves_no_trace():
    calls = []

    def loss_fn(p: Tensor, y: Tensor) -> Tensor:
        calls.append(p.shape)
        torch.rand(1)
        return gaussian(p, y)

    before = torch.get_rng_state()
    check_targets(loss_fn, torch.rand(2, 2), torch.rand(2))

    tried, before = len(calls), torch.get_rng_state()
    check_targets(loss_fn, torch.zeros(2, 2), torch.zeros(2))
    assert len(calls) == tried > 0
    check_targets(loss_fn, torch.zeros(2, 2).double(), torch.zeros(2).double())
    assert len(calls) > tried
    assert torch.equal(torch.get_rng_state(), before)
    check_targets(loss_fn, torch.zeros(5, 2), torch.zeros(5))  # which nothing broadcasts
    assert len(calls) == 2 * tried


class Flat(nn.Module):
    """Predictions [samples], whose last axis is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


def tasks(labels: bool = False) -> tr.TaskBatch:
    x, y = torch.rand(3, 4, 2), torch.rand(3, 4, 1)
    y = torch.tensor([0, 1, 1, 0]).repeat(3, 1) if labels else y
    return tr.TaskBatch(support=(x, y), query=(x, y), ways=2 if labels else None)


def regularizer(**options: object) -> tr.TRLearner:
    return tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=4), **options)


BAD = [
    pytest.param(Flat, False, squares, "loss_fn broadcasts predictions", id="shapes"),
    pytest.param(
        lambda: nn.Linear(2, 2),
        True,
        F.mse_loss,
        r"loss_fn=mse_loss compares numbers, got targets of torch.int64. If they are class labels, pass "
        r"loss_fn=torch.nn.functional.cross_entropy. .* y\.float\(\)",
        id="labels",
    ),
]


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize(("model", "labels", "loss_fn", "match"), BAD)
def test_every_engine_refuses(engine, model, labels, loss_fn, match):
    batch, learner = tasks(labels), tr.MAML(model(), lr=0.1, steps=1, engine=engine)
    for _ in range(2):
        with pytest.raises(Misfit, match=match):
            learner.adapt(batch.support, loss_fn)
    with pytest.raises(Misfit, match=match):
        regularizer(loss_fn=loss_fn)(learner, batch)


def collected(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> Tensor:
    found = reg.collect(ways=batch.ways)
    for i in range(len(batch)):
        found.add(lambda x, i=i: net(x), support=batch.support.real(i), query=batch.query.real(i))
    return found.penalty()


def in_two_phases(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> Tensor:
    found, one = reg.collect(), torch.ones((), requires_grad=True)
    for i in range(len(batch)):
        pairs = {"support": batch.support.real(i), "query": batch.query.real(i)}
        found.add_task(lambda pair: one * 1, lambda fast, x: fast * net(x), **pairs)
    return found.backward()


def consistency(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> Tensor:
    predictions = torch.stack([net(batch.query.x)] * len(batch))
    m = torch.ones(len(batch), len(batch))
    return tr.relation_consistency(
        predictions, batch.query.y, m, reg.loss_fn, mixture=reg.options.mixture
    )


def remembered(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> object:
    memory = tr.TaskMemory(tr.MAML(net, lr=0.1, steps=0), reg.loss_fn, mixture=reg.options.mixture)
    memory.remember(batch)  # without a step nothing asks for a loss
    return memory.adapt(batch.support)


def examined(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> None:
    (finding,) = tr.doctor(net, batch, reg.loss_fn)
    raise Misfit(finding.problem, finding.fix)


def sampled(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> object:
    reg = regularizer(loss_fn=reg.loss_fn, sampler=tr.AdaptiveTaskSampler())
    return reg(tr.MAML(net, lr=0.1, steps=1), batch)


def regularized(reg: tr.TRLearner, net: nn.Module, batch: tr.TaskBatch) -> object:
    return reg.regularize(lambda support: net)(batch)


@pytest.mark.parametrize(
    "entrance",
    [collected, in_two_phases, regularized, consistency, remembered, examined, sampled],
)
@pytest.mark.parametrize(("model", "labels", "loss_fn", "match"), BAD)
def test_every_entrance_refuses(entrance, model, labels, loss_fn, match):
    with pytest.raises(Misfit, match=match):
        entrance(regularizer(loss_fn=loss_fn, mixture="values"), model(), tasks(labels))


def test_models_that_return_more_than_a_tensor_are_no_exception():
    def loss_fn(p: dict[str, Tensor], y: Tensor) -> Tensor:
        return squares(p["mean"], y)

    reg, net, batch = regularizer(loss_fn=loss_fn), Flat(), tasks()
    found = reg.collect()
    for i in range(len(batch)):
        pairs = {"support": batch.support.real(i), "query": batch.query.real(i)}
        found.add(lambda x, i=i: {"mean": net(x)}, **pairs)
    with pytest.raises(Misfit, match="loss_fn broadcasts predictions"):
        found.penalty()


def test_the_doctor_sees_it_with_its_own_loss():
    (finding,) = tr.doctor(Flat(), tasks())
    assert finding.layer == "loss_fn" and "broadcasts predictions [4]" in finding.problem
    assert tr.doctor(nn.Linear(2, 1), tasks()).findings == ()


def test_a_loss_with_parameters_is_tried_while_a_graph_is_traced():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, p: Tensor, y: Tensor) -> Tensor:
            return self.scale * squares(p, y)

    reg = regularizer(loss_fn=Scaled())
    with pytest.raises(Misfit, match="loss_fn broadcasts predictions"):
        reg(tr.MAML(Flat(), lr=0.1, steps=0, engine="traced"), tasks())


def test_the_error_can_be_sent_between_processes():
    error = pickle.loads(pickle.dumps(Misfit("It is wrong.", "Mend it.")))
    assert (str(error), error.problem, error.fix) == (
        "It is wrong. Mend it.",
        "It is wrong.",
        "Mend it.",
    )
