"""Labels that a loss ignores: masks must leave its mean over the labels that count."""

import functools

import pytest
import torch
from contracts import BATCHED_FIRST, ENGINES, gradients, net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import trlearner as tr
from trlearner.tasks.ignored import ignored_label
from trlearner.tasks.loss import task_loss
from trlearner.tasks.targets import Misfit

TIGHT = {"rtol": 0.0, "atol": 1e-12}
WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)


def wrapped(p: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(p, y, ignore_index=2)


def by_hand(p: Tensor, y: Tensor) -> Tensor:
    counts = y != 2
    losses = F.cross_entropy(p, y, reduction="none")
    return torch.where(counts, losses, 0.0).sum() / counts.sum()


IGNORING = {
    "default": (F.cross_entropy, -100),
    "partial": (functools.partial(F.cross_entropy, ignore_index=0), 0),
    "module": (nn.CrossEntropyLoss(ignore_index=2), 2),
    "weighted": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=1), 1),
    "smoothed": (nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.1), 2),
    "nll": (lambda p, y: F.nll_loss(p.log_softmax(1), y, ignore_index=-1), -1),
    "function": (wrapped, 2),
    "by hand": (by_hand, 2),
}


@pytest.mark.parametrize("name", IGNORING)
def test_it_is_found(name: str):
    loss_fn, label = IGNORING[name]
    p, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for _ in range(2):  # found, and remembered
        assert ignored_label(loss_fn, p, y) == label


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda p, y: F.cross_entropy(p, y, reduction="none").mean(),
        lambda p, y: F.cross_entropy(p, y, reduction="none", ignore_index=2).mean(),
        lambda p, y, ignore_index=2: F.cross_entropy(p, y, reduction="none", ignore_index=2).mean(),
        lambda p, y: F.multi_margin_loss(p, y),
        nn.CrossEntropyLoss(reduction="sum", ignore_index=7, weight=torch.zeros(1)),
    ],
)
def test_a_loss_that_counts_every_sample_ignores_none(loss_fn):
    p, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    assert ignored_label(loss_fn, p, y) is None


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("dense", [False, True], ids=["classes", "pixels"])
def test_a_mask_equals_dropping(name: str, dense: bool):
    loss_fn, label = IGNORING[name]
    g = torch.Generator().manual_seed(0)
    rest = (2, 2) if dense else ()
    p = torch.randn(6, 3, *rest, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([label, 2, 0, 0, 1, 2]).reshape(6, *[1] * len(rest)).repeat(1, *rest)
    if dense:
        y[1, 0, 0] = label
    mask = torch.tensor([True, True, False, True, False, True])
    masked, dropped = task_loss(loss_fn, p, y, mask), loss_fn(p[mask], y[mask])
    assert_close(masked, dropped, **TIGHT)
    found, wanted = (torch.autograd.grad(loss, p)[0] for loss in (masked, dropped))
    assert_close(found, wanted, **TIGHT)


def unequal(label: int | None, seed: int = 0) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(seed)

    def pair(samples: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(samples) % 3
        if label is not None:
            y[1] = label
        return torch.randn(samples, 2, generator=g, dtype=torch.float64), y

    return tr.TaskBatch.from_tasks([(pair(n), pair(n + 1)) for n in (3, 5, 4)])


def step(loss_fn, engine: str, *batches: tr.TaskBatch) -> dict[str, Tensor]:
    learner = tr.MAML(net(), lr=0.3, steps=2, engine=engine)
    encoder = tr.InputEncoder(learner.model.body, dim=5)
    reg = tr.TRLearner(encoder=encoder, loss_fn=loss_fn).double()
    for batch in batches:
        out = reg(learner, batch)
    return {"loss": out.loss.detach(), **gradients(out.loss, learner, reg)}


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ["default", "partial", "module", "function"])
def test_every_engine_leaves_them_out(engine: str, name: str):
    loss_fn, label = IGNORING[name]
    # The first batch does not tell that a label will be ignored.
    found = step(loss_fn, engine, unequal(1), unequal(label, seed=1))
    wanted = step(loss_fn, "loop", unequal(label, seed=1))
    assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_without_a_label_that_counts_is_refused(engine: str):
    batch = unequal(None)
    batch.query.y[2] = -100
    for some in (batch, tr.TaskBatch(batch.query, batch.support)):
        with pytest.raises(Misfit, match=r"ignores the label -100, and tasks \[2\] have no other"):
            step(F.cross_entropy, engine, some)


def test_so_it_is_in_a_loop_of_the_users_own_and_where_tensors_are_given():
    reg = tr.TRLearner(
        encoder=tr.FunctionEncoder(torch.ones(2, 2), outputs=3), loss_fn=F.cross_entropy
    )
    tasks, one, m = reg.collect(), torch.ones((), requires_grad=True), torch.ones(2, 2)
    for y in (torch.tensor([0, 1]), torch.tensor([-100, -100])):
        tasks.add(lambda x, one=one + 0: one * x.repeat(1, 2)[:, :3], support=(m, y), query=(m, y))
    match = r"ignores the label -100, and tasks \[1\] have no other"
    with pytest.raises(Misfit, match=match):
        tasks.penalty()
    p, y = torch.zeros(2, 2, 3, 4), torch.tensor([[0, 1, 2], [-100, -100, 1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert tr.relation_consistency(p, y, m, F.cross_entropy).isfinite()
    with pytest.raises(Misfit, match=match):
        tr.relation_consistency(p, y, m, F.cross_entropy, mask=mask)
