"""Known tasks are learned until it hurts, and models that would ruin answers are not remembered."""

from __future__ import annotations

import warnings

import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from memory.test_task_memory import Basis, learner, waves
from trlearner.memory import stop
from trlearner.memory.known import held_out, split
from trlearner.memory.stop import learn

pytestmark = pytest.mark.unchecked


def planted(bad: list, tasks: tr.TaskBatch) -> tuple[list, tr.Samples]:
    """The true curves as models, with bad ones in place of the first of them."""
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    y = torch.cat([tasks.support.y, tasks.query.y], 1)
    features = torch.cat([torch.sin(x), torch.cos(x)], -1)
    slopes = torch.linalg.lstsq(features, y).solution
    models = [lambda x, w=w: torch.cat([torch.sin(x), torch.cos(x)], -1) @ w for w in slopes]
    return [*bad, *models[len(bad) :]], tr.Samples(x, y)


def spike(x: Tensor) -> Tensor:
    """Sound on its own samples (below 0), and wild elsewhere."""
    return torch.where(x > 0, 1e4, torch.sin(x))


def test_planted_models_are_left_out_and_told() -> None:
    bad = [lambda x: x / 0, lambda x: torch.nan * x, lambda x: 7 * x + 9, spike]
    tasks = waves(30, 0)
    models, samples = planted(bad, tasks)
    x, y = samples.x.clone(), samples.y.clone()
    x[3] = -x[3].abs()
    y[3] = torch.sin(x[3])
    memory = tr.TaskMemory()
    text = "4 of 30 models are not remembered: 2 not finite, 1 worse than a constant, 1 outside the range"
    with pytest.warns(UserWarning, match=text):
        memory.remember_models(models, (x, y), together=True)
    assert len(memory) == 26
    assert memory.left_out == {
        "not finite": 2, "worse than a constant": 1, "outside the range of labels": 1
    }  # fmt: skip
    new = waves(50, 1)
    error = mse_loss(memory.adapt(new.support)(new.query), new.query.y)
    assert error < 0.05
    unguarded = tr.TaskMemory(noise=0.01)
    unguarded.remember_models(models)
    ruined = unguarded.adapt(new.support)(new.query)
    assert not mse_loss(ruined, new.query.y) < 100 * error


def test_nothing_sound_is_an_error() -> None:
    tasks = waves(3, 0)
    with pytest.raises(
        ValueError, match="3 of 3 models are not remembered: 3 worse than a constant"
    ):
        tr.TaskMemory().remember_models([lambda x: 50 + x] * 3, tasks)


def test_constants_are_sound_models_of_constants() -> None:
    tasks = waves(10, 0)
    models, samples = planted([lambda x: 1.001 + 0 * x], tasks)
    y = samples.y.clone()
    y[0] = 1.0
    memory = tr.TaskMemory()
    memory.remember_models(models, (samples.x, y))
    assert len(memory) == 10


def test_each_task_stops_where_its_held_out_samples_are_predicted_best() -> None:
    """Labels of every other task are noise: the more steps, the worse."""
    tasks = waves(6, 0, samples=15)
    g = torch.Generator().manual_seed(1)
    y = tasks.query.y.clone()
    y[::2] = torch.randn(y[::2].shape, generator=g)
    samples = tr.Samples(tasks.query.x, y)
    net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 1))
    made = tr.MAML(net, lr=0.03, steps=1, engine="batched")
    parts = held_out(samples, 0.3)
    assert parts is not None
    with torch.no_grad():
        found = learn(made, samples, mse_loss, 200, 0.3)
        each = {}
        for steps in (1, 5, 20, 50, 100, 200):
            models = made.adapt(parts[0], mse_loss, steps=steps)
            each[steps] = models.losses(mse_loss, models(parts[1]), parts[1])
        best = torch.stack(list(each.values())).amin(0)
        chosen = torch.tensor(list(each))[torch.stack(list(each.values())).argmin(0)]
        close(((found.answers - found.held.y) ** 2).mean((1, 2)), best, 1e-6)
        for i, steps in enumerate(chosen.tolist()):
            again = made.adapt(samples[i : i + 1], mse_loss, steps=steps)
            before = made.adapt(parts[0][i : i + 1], mse_loss, steps=steps)
            said = [m(samples[i : i + 1]) for m in (again, before)]
            errors = [float(mse_loss(s, samples.y[i : i + 1])) for s in said]
            expected = said[0] if errors[0] < errors[1] else said[1]
            close(found.models[i : i + 1](samples[i : i + 1]), expected, 1e-5)
    assert len(chosen.unique()) > 1


def test_steps_that_explode_are_not_taken() -> None:
    """Some inputs are so large that only few steps go well."""
    tasks = waves(10, 0)
    x = torch.cat([tasks.support.x, tasks.query.x], 1)
    x[:3] *= 4.0
    samples = tr.Samples(x, torch.sin(x))
    made = tr.MAML(Basis(), lr=0.12, steps=1, engine="batched")
    plain = tr.TaskMemory(made)
    with pytest.warns(UserWarning, match=r"of 10 models are not remembered: . not finite"):
        plain.remember(samples, held_out=0.0, steps=200)
    memory = tr.TaskMemory(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        memory.remember(samples, steps=200)
    assert memory.left_out["not finite"] == 0
    assert len(plain) < 10


def test_chunks_of_tasks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (512, 3):
        monkeypatch.setattr(stop, "TOGETHER", size)
        memory = tr.TaskMemory(learner())
        memory.remember(waves(7, 0), steps=20)
        found.append(memory.adapt(waves(3, 1).support)(waves(3, 1).query))
    close(*found, 1e-5)


@pytest.mark.parametrize("unequal", [False, True])
def test_a_split_takes_every_real_sample_once(unequal: bool) -> None:
    x = torch.arange(1.0, 25.0).reshape(3, 8, 1)
    mask = torch.arange(8) < torch.tensor([[8], [5], [6]]) if unequal else None
    samples = tr.Samples(x, x, mask)
    counts = torch.tensor([2, 1, 1] if unequal else [2, 2, 2])
    parts = split(samples, counts)
    for i in range(3):
        some, others = (part.real(i)[0].flatten().tolist() for part in parts)
        assert len(some) == counts[i]
        assert sorted([*some, *others]) == samples.real(i)[0].flatten().tolist()


def test_tasks_of_unequal_size_are_remembered() -> None:
    tasks = waves(6, 0)
    sizes = [(5, 7), (5, 35), (4, 20), (5, 30), (5, 30), (5, 6)]
    batch = tr.TaskBatch.from_tasks(
        [
            tuple((p[0][:n], p[1][:n]) for p, n in zip(task, size, strict=True))
            for task, size in zip(
                zip(
                    map(tasks.support.real, range(6)), map(tasks.query.real, range(6)), strict=True
                ),
                sizes,
                strict=True,
            )
        ]
    )
    memory = tr.TaskMemory(learner())
    memory.remember(batch, steps=100)
    new = waves(20, 1)
    assert len(memory) == 6
    own = memory.learner.adapt(new.support, mse_loss)(new.query)
    answers = memory.adapt(new.support)(new.query)
    assert mse_loss(answers, new.query.y) < 0.5 * mse_loss(own, new.query.y)
    assert memory.tune().tasks == memory.tune(shots=3).tasks == 6
