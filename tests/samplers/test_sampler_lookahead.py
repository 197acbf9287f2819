"""The look-ahead's gradient against the held-out loss after real meta-steps."""

import copy
import functools

import contracts
import pytest
import torch
import torch.autograd.forward_ad as dual
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from trlearner.experiments.data.models.conv4 import Conv4

import trlearner as tr
from trlearner.engines.choose import ENGINES
from trlearner.samplers.evidence import gather
from trlearner.samplers.lookahead import lookahead, looking, mean_gradient, products, task_losses

LR, STEP = 0.05, 1e-5
TOLERANCE = 1e-6


def losses(learner: tr.Learner, batch: tr.TaskBatch, loss_fn) -> Tensor:  # type: ignore[no-untyped-def]
    """Through the public interface, task by task."""
    adapted = learner.adapt(batch.support, loss_fn)
    answers = adapted(batch.query)
    return torch.stack(
        [
            loss_fn(answers[i][m], batch.query.y[i][m])
            for i in range(len(batch))
            for m in [slice(None) if batch.query.mask is None else batch.query.mask[i]]
        ]
    )


def after_a_step(learner, train, held_out, weights, loss_fn) -> float:  # type: ignore[no-untyped-def]
    """The held-out loss after one real step of a real optimizer."""
    mine = copy.deepcopy(learner)
    optimizer = torch.optim.SGD(mine.parameters(), lr=LR)
    (weights * losses(mine, train, loss_fn)).sum().backward()
    optimizer.step()
    return losses(mine, held_out, loss_fn).mean().item()


def differences(learner, train, held_out, weights, loss_fn) -> Tensor:  # type: ignore[no-untyped-def]
    found = []
    for i in range(len(weights)):
        up, down = weights.clone(), weights.clone()
        up[i] += STEP
        down[i] -= STEP
        sides = [after_a_step(learner, train, held_out, w, loss_fn) for w in (up, down)]
        found.append((sides[0] - sides[1]) / (2 * STEP))
    return torch.tensor(found, dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() < TOLERANCE * wanted.abs().max()


CASES = [(name, "numbers") for name in contracts.LEARNERS]
CASES += [(name, "labels") for name in (*contracts.LEARNERS, "protonet")]


WEIGHTS = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)


@functools.cache
def problem(name: str, kind: str) -> tuple:
    """Learner, batch, loss and finite differences, whose values are the same on every engine."""
    made = contracts.regression_batch if kind == "numbers" else contracts.class_batch
    batch, loss_fn = made(tasks=7), mse_loss if kind == "numbers" else cross_entropy
    learner = contracts.learner(name, contracts.net(), "batched")
    wanted = differences(learner, batch[:4], batch[4:], WEIGHTS, loss_fn)
    return learner, batch, loss_fn, wanted


@pytest.mark.full
@pytest.mark.parametrize("engine", ["higher", "loop", "batched"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_gradient_is_that_of_the_held_out_loss_after_a_step(
    name: str, kind: str, engine: str
) -> None:
    learner, batch, loss_fn, wanted = problem(name, kind)
    learner.engine = engine
    with looking(learner, batch, loss_fn) as (runner, _):
        close(lookahead(runner, learner, batch[:4], batch[4:], WEIGHTS, loss_fn, LR), wanted)


def test_masked_tasks_too() -> None:
    batch = contracts.regression_batch(tasks=5)
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 3, 4, 1])[:, None]
    support = tr.Samples(batch.support.x, batch.support.y, mask)
    batch = tr.TaskBatch(support, batch.query)
    learner = contracts.learner("maml", contracts.net(), "batched")
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found = lookahead("batched", learner, batch[:3], batch[3:], weights, mse_loss, LR)
    close(found, differences(learner, batch[:3], batch[3:], weights, mse_loss))


def images(tasks: int) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(tasks, 1)

    def draw() -> Tensor:
        return torch.randn(tasks, 3, 1, 16, 16, generator=g, dtype=torch.float64)

    return tr.TaskBatch(support=(draw(), y), query=(draw(), y), ways=3)


def conv4() -> nn.Module:
    torch.manual_seed(0)
    return Conv4(ways=3, channels=1, size=16, filters=4).double()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward mode
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_batch_norm(engine: str) -> None:
    """Conv-4: forward mode through batch_norm is not relied on, but agrees where it works."""
    batch = images(5)
    learner = tr.MAML(conv4(), lr=0.1, steps=2, engine=engine)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    runner = ENGINES[engine]
    found = lookahead(runner, learner, batch[:3], batch[3:], weights, cross_entropy, LR)
    close(found, differences(learner, batch[:3], batch[3:], weights, cross_entropy))
    state = learner.state()

    def losses_of(at: dict) -> Tensor:
        return task_losses(runner, learner, at, batch[:3], cross_entropy)

    direction = mean_gradient(losses_of, state)
    along = products(losses_of, state, direction)
    with dual.dual_level():
        at = {
            n: dual.make_dual(t.detach().requires_grad_(), direction[n]) for n, t in state.items()
        }
        tangent = dual.unpack_dual(losses_of(at)).tangent
    assert (along - tangent).abs().max() < 1e-12 * along.abs().max()


def test_one_product_a_task() -> None:
    """Against gradients one by one."""
    learner, batch = (
        contracts.learner("tnet", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    state = learner.state()
    g = torch.Generator().manual_seed(3)
    direction = {n: torch.randn(t.shape, generator=g, dtype=t.dtype) for n, t in state.items()}

    def losses_of(at: dict) -> Tensor:
        return task_losses(ENGINES["batched"], learner, at, batch, mse_loss)

    each = losses(learner, batch, mse_loss)
    contracts.close(losses_of(state).detach(), each.detach(), 1e-12)
    wanted = []
    for loss in each:
        gradient = torch.autograd.grad(loss, list(state.values()), retain_graph=True)
        wanted.append(sum((a * b).sum() for a, b in zip(gradient, direction.values(), strict=True)))
    for together in (True, False):
        along = products(losses_of, state, direction, together)
        assert along.tolist() == pytest.approx(torch.stack(wanted).tolist(), rel=1e-10)


@pytest.mark.full
@pytest.mark.parametrize("name", [*contracts.LEARNERS, "protonet"])
@pytest.mark.parametrize("masked", [False, True])
def test_all_ways_to_look_see_the_same(name: str, masked: bool) -> None:
    """At once, and one task after the other."""
    batch = contracts.class_batch()
    if masked:
        mask = torch.ones(batch.support.x.shape[:2], dtype=torch.bool)
        mask[1, 4:] = False
        support = tr.Samples(batch.support.x, batch.support.y, mask, batch.ways)
        batch = tr.TaskBatch(support, batch.query)
    learner = contracts.learner(name, contracts.net(), "batched")
    state = learner.state()
    direction = {n: torch.ones_like(t) for n, t in state.items()}
    wanted = torch.autograd.grad(
        losses(learner, batch, cross_entropy).mean(), list(state.values()), allow_unused=True
    )
    seen = []
    for runner in (ENGINES["batched"], ENGINES["loop"]):

        def losses_of(at: dict, runner=runner) -> Tensor:  # type: ignore[no-untyped-def]
            return task_losses(runner, learner, at, batch, cross_entropy)

        seen.append(
            (
                products(losses_of, state, direction, runner.together),
                gather(runner, learner, state, batch.support, cross_entropy, None),
            )
        )
        found = mean_gradient(losses_of, state)
        assert list(found) == list(state)
        for gradient, truth in zip(found.values(), wanted, strict=True):
            contracts.close(gradient, torch.zeros_like(gradient) if truth is None else truth, 1e-12)
    (effects, evidence), (other, others) = seen
    contracts.close(effects, other, 1e-12)
    real = slice(None) if batch.support.mask is None else batch.support.mask  # padding is anybody's
    contracts.close(evidence.features[real], others.features[real], 1e-12)
    contracts.close(evidence.gradient_norm, others.gradient_norm, 1e-12)


def test_a_look_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    learner, batch = tr.MAML(model, lr=0.1, steps=2), contracts.regression_batch()
    before, random = copy.deepcopy(learner.state_dict()), torch.get_rng_state()
    sampler = tr.AdaptiveTaskSampler(every=1, warmup=0)
    for _ in range(2):
        sampler.update(learner, batch)
    assert sampler.summary()["scores/difficulty"].shape == (len(batch),)  # it has looked
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(t, learner.state_dict()[n]) for n, t in before.items())
    assert all(p.grad is None for p in learner.parameters())


def test_engines_have_names() -> None:
    learner, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    weights = torch.ones(1, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"engine must be one of \('loop', 'batched', .*, got 'comp"
    ):
        lookahead("compiled", learner, batch[:1], batch[1:], weights, mse_loss, LR)
