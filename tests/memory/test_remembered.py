"""Models of any kind are remembered, by loops of the user's own, too."""

from __future__ import annotations

import higher
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from memory.test_task_memory import Basis, learner, memory_of_waves, rbf, waves


def adapt(net: nn.Module, x: Tensor, y: Tensor, steps: int = 30) -> nn.Module:
    """A loop on higher."""
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with higher.innerloop_ctx(net, inner, track_higher_grads=False) as (fmodel, diffopt):
        for _ in range(steps):
            diffopt.step(mse_loss(fmodel(x), y))
    return fmodel


def whole(tasks: tr.TaskBatch) -> tuple[Tensor, Tensor]:
    return tuple(torch.cat([getattr(p, n) for p in (tasks.support, tasks.query)], 1) for n in "xy")


def test_a_loop_on_higher_has_a_memory_in_three_lines() -> None:
    net, known, new = learner().model, waves(30, 0), waves(20, 1)
    models = [adapt(net, x, y) for x, y in zip(*whole(known), strict=True)]  # the loop's own
    fmodels = [adapt(net, x, y, steps=1) for x, y, *_ in map(new.support.real, range(20))]

    memory = tr.TaskMemory()
    memory.remember_models(models, known)
    answer = memory.adapt(new.support, own=fmodels)

    own = torch.stack([f(x) for f, x in zip(fmodels, new.query.x, strict=True)]).detach()
    found = mse_loss(answer(new.query), new.query.y)
    assert found < 0.1 * mse_loss(own, new.query.y)
    memory.share = 0.25
    close(
        memory.adapt(new.support, own=fmodels)(new.query),
        0.75 * own + 0.25 * answer(new.query),
        1e-6,
    )
    tuned = memory.tune(new, own=fmodels)
    assert tuned.loss < 0.1 * tuned.alone and tuned.share == 1.0


@pytest.mark.parametrize("together", [False, True])
def test_callables_answer_as_the_learners_models(together: bool) -> None:
    """The same models, remembered as what they are and as callables; and both kinds at once."""
    memory, new = memory_of_waves(12), waves(5, 1)
    fast = memory._kept.fast

    def callable_of(j: int):
        one = {n.removeprefix("model."): t[j] for n, t in fast.items()}
        return lambda x: torch.func.functional_call(memory.learner.model, one, (x,))

    others = tr.TaskMemory(memory.learner)
    others.remember_models([callable_of(j) for j in range(12)], waves(12, 0), together=together)
    both = tr.TaskMemory(memory.learner, neighbours=8)
    both.remember(waves(12, 0)[:5], steps=100)
    both.remember_models(
        [callable_of(j) for j in range(5, 12)], waves(12, 0)[5:], together=together
    )
    memory.neighbours = others.neighbours = 8
    expected = memory.adapt(new.support)
    for one in (others, both):
        found = one.adapt(new.support)
        assert found.models.tolist() == expected.models.tolist()
        close(found.weights, expected.weights, 1e-4)
        for a, b in zip(found(new.query, std=True), expected(new.query, std=True), strict=True):
            close(a, b, 1e-4)
        tuned, wanted = one.tune(), memory.tune()
        assert tuned.loss == pytest.approx(wanted.loss, rel=1e-3)
        one.neighbours, one.spread, one.noise = 8, 0.5, None
        memory.neighbours, memory.spread, memory.noise = 8, 0.5, None
        memory.share = memory.std_scale = one.std_scale = 1.0
    with pytest.raises(ValueError, match="callables cannot be saved, and 7 are remembered"):
        both.state_dict()


def test_models_of_another_kind_serve() -> None:
    """Ridge regression on features, for each task; the new tasks have no models of their own."""
    known, new = waves(30, 0), waves(20, 1)

    def ridge(x: Tensor, y: Tensor):
        def features(x: Tensor) -> Tensor:
            return torch.cat([x**k for k in range(9)], -1).double()

        f = features(x)
        w = torch.linalg.solve(f.T @ f + 1e-3 * torch.eye(9), f.T @ y.double())
        return lambda x: (features(x) @ w).float()

    memory = tr.TaskMemory()
    memory.remember_models([ridge(x, y) for x, y in zip(*whole(known), strict=True)], known)
    assert mse_loss(memory.adapt(new.support)(new.query), new.query.y) < 0.05
    tuned = memory.tune()
    assert (memory.share, tuned.tasks) == (1.0, 30) and tuned.alone != tuned.alone
    assert mse_loss(memory.adapt(new.support)(new.query), new.query.y) < 0.05
    assert list(memory.parameters()) == []


def test_without_tasks_noise_must_be_known() -> None:
    memory, new = tr.TaskMemory(), waves(3, 1)
    memory.remember_models([torch.sin, torch.cos])
    with pytest.raises(ValueError, match="noise must be given where the memory knows no labels"):
        memory.adapt(new.support)
    memory.tune(waves(20, 2))
    assert memory.adapt(new.support)(new.query).shape == new.query.y.shape


def test_a_kernel_needs_no_remembered_models() -> None:
    memory, new = tr.TaskMemory(learner(), kernel=rbf), waves(50, 1, shots=10)
    tuned = memory.tune(waves(50, 2, shots=10))
    assert tuned.loss < 0.5 * tuned.alone and memory.kernel_scale == tuned.kernel_scale > 0
    recalled = memory.adapt(new.support)
    own = memory.learner.adapt(new.support, mse_loss)(new.query)
    answers, deviations = recalled(new.query, std=True)
    assert mse_loss(answers, new.query.y) < 0.5 * mse_loss(own, new.query.y)
    assert recalled.models.shape == (50, 0)
    covered = ((answers - new.query.y).abs() < 1.96 * deviations).float().mean()
    assert 0.9 < covered < 0.99


def test_a_kernel_helps_models_that_leave_something_out() -> None:
    memory = tr.TaskMemory(learner(), kernel=rbf)
    memory.remember(waves(20, 0), steps=100)
    alone = tr.TaskMemory(kernel=rbf)
    alone.remember_models([torch.sin, torch.cos])
    alone.noise = 0.01
    new = waves(50, 1)
    for one in (memory, alone):
        answers, deviations = one.adapt(new.support)(new.query, std=True)
        assert (
            mse_loss(answers, new.query.y) < 0.5 * new.query.y.var() and deviations.isfinite().all()
        )


@pytest.mark.unchecked
def test_wrong_models_and_kernels_are_told() -> None:
    new = waves(3, 1)
    memory = tr.TaskMemory(noise=0.1)
    with pytest.raises(
        ValueError, match="models must be a list of models, one for each of the 3 tasks"
    ):
        memory.remember_models([torch.sin], new)
    with pytest.raises(TypeError, match="models must be a list of callables"):
        memory.remember_models(torch.zeros(3))
    memory.remember_models([torch.sin, lambda x: x[:, 0]])
    with pytest.raises(ValueError, match="all models must return predictions of one shape"):
        memory.adapt(new.support)
    mixed = memory_of_waves(5)
    mixed.remember_models([lambda x: x[:, 0]])
    with pytest.raises(ValueError, match=r"all remembered models must predict alike"):
        mixed.adapt(new.support)
    for kernel, error, text in (
        (lambda a, b: 1.0, TypeError, r"kernel\(a, b\) must return a tensor \[n, m\] = \(5, 5\)"),
        (lambda a, b: a, ValueError, r"kernel\(a, b\) must return \[n, m\] = \(5, 5\) for a"),
    ):
        with pytest.raises(error, match=text):
            tr.TaskMemory(learner(), kernel=kernel, noise=0.1).adapt(new.support)


def test_batch_norm_answers_as_task_by_task() -> None:
    net = nn.Sequential(Basis(), nn.BatchNorm1d(1), nn.Linear(1, 1))
    made = tr.MAML(net, lr=0.01, steps=1, engine="batched")
    memory, new = tr.TaskMemory(made), waves(4, 1)
    memory.remember(waves(6, 0), steps=3, held_out=0.0)
    together = memory.adapt(new.support)(new.query)
    for i in range(4):
        one = memory.adapt(new.support[i : i + 1])(new.query[i : i + 1])
        close(together[i : i + 1], one, 1e-4)
