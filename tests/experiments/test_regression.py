"""Curves without data: their formulas, their splits, their noise."""

import math

import pytest
import torch
from trlearner.experiments.data import regression
from trlearner.experiments.data.problem import Request, Source
from trlearner.experiments.data.regression import PROBLEMS, Curves, squared_error

import trlearner as tr

QUIET = {"noise": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def formula(family: str, p: list[float], x: float) -> float:
    if family == "sine":
        return p[0] * math.sin(p[1] * x + p[2])
    if family == "harmonic":
        return p[0] * math.sin(x + p[1]) + p[2] * math.sin(2 * x + p[3])
    if family == "line":
        return p[0] * x + p[1]
    if family == "parabola":
        return p[0] * (x - p[1]) ** 2 + p[2]
    phase = x / p[1]
    return p[0] * (2 * (phase - math.floor(phase)) - 1)


@pytest.mark.parametrize("family", ["sine", "harmonic", "line", "parabola", "saw"])
def test_curves_follow_their_formula(family: str) -> None:
    p, x = torch.rand(3, 4, dtype=torch.float64) + 0.5, torch.randn(3, 7, dtype=torch.float64)
    found = regression.curve(family, p, x)
    for i in range(3):
        for j in range(7):
            expected = formula(family, p[i].tolist(), float(x[i, j]))
            assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_draws_every_split(name: str) -> None:
    problem = PROBLEMS[name](Request(shots=5, queries=7, train_tasks=30))
    assert isinstance(problem.source, Source)
    for split in ("train", "validation", "test", "shifted"):
        batch = problem.source.sample(split, 6, seeded())
        assert batch.support.x.shape == batch.support.y.shape == (6, 5, 1)
        assert batch.query.x.shape == (6, 7, 1) and len(batch.ids) == 6
        again = problem.source.sample(split, 6, seeded())
        other = problem.source.sample(split, 6, seeded(1))
        assert torch.equal(batch.query.y, again.query.y)
        assert not torch.equal(batch.query.y, other.query.y)
    network = problem.network()
    assert network(batch.query.x).shape == batch.query.y.shape
    assert problem.features(network) is None and hasattr(network, problem.head)


def test_training_tasks_are_a_fixed_set_with_fresh_points() -> None:
    source = PROBLEMS["regression/sinusoid-classic"](
        Request(shots=2, queries=3, train_tasks=4, options=QUIET)
    ).source
    first, second = (source.sample("train", 4, seeded(seed)) for seed in (0, 1))
    assert not torch.equal(first.support.x.sort(0)[0], second.support.x.sort(0)[0])

    def fits(curve: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> bool:
        return torch.allclose(
            regression.curve("sine", curve[None, 1:], x[None, :, 0]), y.T, atol=1e-5
        )

    for batch in (first, second):
        curves = [
            next(
                i for i, c in enumerate(source.train) if fits(c, batch.query.x[t], batch.query.y[t])
            )
            for t in range(4)
        ]
        assert sorted(curves) == [0, 1, 2, 3]


def test_a_pool_holds_the_same_points_for_ever() -> None:
    request = Request(shots=2, queries=3, train_tasks=4, pool=8)
    source = PROBLEMS["regression/sinusoid"](request).source
    seen = set()
    for seed in range(60):
        batch = source.sample("train", 4, seeded(seed))
        x = torch.cat([batch.support.x, batch.query.x], 1)
        assert all(len(set(row.flatten().tolist())) == 5 for row in x)  # no point twice in a task
        seen |= set(x.flatten().tolist())
    assert len(seen) == 4 * 8


def test_shifted_curves_lie_outside_of_training() -> None:
    source = Curves((regression.SINE,), Request(shots=5, queries=200, options=QUIET), 0.0, 480)
    amplitude = [
        source.sample(s, 200, seeded()).query.y.abs().amax((1, 2)) for s in ("test", "shifted")
    ]
    assert amplitude[0].max() <= 5.0 < amplitude[1].median()


def test_noise_is_what_was_asked_for() -> None:
    def draw(noise: float) -> tr.TaskBatch:
        request = Request(shots=5, queries=500, options={"noise": noise})
        return PROBLEMS["regression/sinusoid"](request).source.sample("test", 20, seeded())

    difference = draw(0.3).query.y - draw(0.0).query.y
    assert difference.std().item() == pytest.approx(0.3, rel=0.05)


def test_families_are_named_and_evenly_drawn() -> None:
    source = PROBLEMS["regression/families"](Request(shots=5, queries=5)).source
    names = list(source.sample("test", 2000, seeded()).ids)
    assert set(names) == {"sine", "line", "parabola", "saw"}
    assert all(420 < names.count(name) < 580 for name in set(names))


def test_squared_error_counts_real_queries_only() -> None:
    y, mask = torch.zeros(2, 3, 1), torch.tensor([[True, True, False], [True, True, True]])
    predictions = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [2.0], [2.0]]])
    query = tr.Samples(torch.zeros(2, 3, 1), y, mask)
    assert squared_error(predictions, query).tolist() == [5.0, 4.0]
    assert squared_error(predictions[1:], tr.Samples(y[1:], y[1:])).tolist() == [4.0]


@pytest.mark.unchecked
def test_what_cannot_be_drawn_is_refused() -> None:
    build = PROBLEMS["regression/sinusoid"]
    with pytest.raises(ValueError, match="pool must hold the 5 support and 10 query samples"):
        build(Request(shots=5, queries=10, pool=12))
    source = build(Request(shots=5, queries=10, train_tasks=8)).source
    with pytest.raises(ValueError, match="n_tasks must be at most the 8 training tasks, got 9"):
        source.sample("train", 9, seeded())
    with pytest.raises(
        ValueError, match="split must be train, validation, test or shifted, got 'dev'"
    ):
        source.sample("dev", 2, seeded())
