import math

import numpy as np
import pytest
from trlearner.experiments.reporting import difference as module
from trlearner.experiments.reporting.difference import Difference, difference, half_width, resampled
from trlearner.experiments.reporting.interval import interval


def made(seeds, tasks, of_seed, of_task, rest, generator):
    return (
        of_seed * generator.standard_normal((seeds, 1))
        + of_task * generator.standard_normal((1, tasks))
        + rest * generator.standard_normal((seeds, tasks))
    )


TABLE = made(4, 6, 0.5, 1.0, 0.3, np.random.default_rng(0)) + 0.2


def by_loops(table):
    """The interval, written from the analysis of variance in a textbook."""
    seeds, tasks = len(table), len(table[0])
    mean = sum(map(sum, table)) / (seeds * tasks)
    rows = [sum(row) / tasks for row in table]
    columns = [sum(row[j] for row in table) / seeds for j in range(tasks)]
    of_seed = tasks * sum((r - mean) ** 2 for r in rows) / (seeds - 1)
    of_task = seeds * sum((c - mean) ** 2 for c in columns) / (tasks - 1)
    rest = 0.0
    for i in range(seeds):
        for j in range(tasks):
            rest += (table[i][j] - rows[i] - columns[j] + mean) ** 2
    rest /= (seeds - 1) * (tasks - 1)
    variance = (of_seed + of_task - rest) / (seeds * tasks)
    parts = ((of_seed, seeds - 1), (of_task, tasks - 1), (-rest, (seeds - 1) * (tasks - 1)))
    freedom = (of_seed + of_task - rest) ** 2 / sum(part**2 / n for part, n in parts)
    return mean, variance, freedom


def test_the_interval_is_that_of_the_textbook():
    from scipy.stats import t

    mean, variance, freedom = by_loops(TABLE.tolist())
    found = difference(TABLE)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert freedom > 3  # else the bound would hold
    expected = t.ppf(0.975, freedom) * math.sqrt(variance)
    assert found.half_width == pytest.approx(expected, rel=1e-12)


def test_where_only_seeds_differ_it_is_student_over_seeds():
    by_seed = [0.3, 0.1, 0.5, 0.4, 0.2]
    table = np.repeat(np.array(by_seed)[:, None], 30, axis=1)
    assert half_width(table) == pytest.approx(interval(by_seed).half_width, rel=1e-9)


def test_where_only_tasks_differ_it_is_student_over_tasks():
    by_task = np.random.default_rng(1).standard_normal(30)
    table = np.repeat(by_task[None], 5, axis=0)
    assert half_width(table) == pytest.approx(interval(by_task.tolist()).half_width, rel=1e-9)


@pytest.mark.full
def test_the_bootstrap_is_that_of_a_loop():
    generator, loop = np.random.default_rng(5), []
    for _ in range(20_000):
        seeds = generator.integers(0, 4, 4)
        tasks = generator.integers(0, 6, 6)
        loop.append(np.mean([TABLE[i, j] for i in seeds for j in tasks]))
    fast = resampled(TABLE)
    assert fast.mean() == pytest.approx(np.mean(loop), abs=0.03)  # of a spread of 0.45
    assert fast.std() == pytest.approx(np.std(loop), rel=0.04)
    for percentile in (2.5, 50, 97.5):
        expected = np.percentile(loop, percentile)
        assert np.percentile(fast, percentile) == pytest.approx(expected, abs=0.06)


def test_the_bootstrap_has_the_variance_that_algebra_gives():
    """Counts of seeds have the second moments 1 - 1/n + [i == j], and so have those of tasks."""
    seeds, tasks = TABLE.shape
    second = [1 - 1 / n + np.eye(n) for n in (seeds, tasks)]
    square = np.einsum("ij,ik,jl,kl->", TABLE, second[0], second[1], TABLE) / (seeds * tasks) ** 2
    expected = math.sqrt(square - TABLE.mean() ** 2)
    assert resampled(TABLE).std() == pytest.approx(expected, rel=0.04)


def test_it_repeats_itself():
    assert difference(TABLE) == difference(TABLE.copy())


@pytest.mark.full
@pytest.mark.parametrize(
    "parts", [(1.0, 0.0, 0.1), (0.1, 0.0, 1.0), (0.1, 2.0, 0.5), (0.0, 1.0, 0.3), (0.1, 1.0, 0.1)]
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_it_holds_the_truth_as_often_as_it_says(parts, seeds):
    generator = np.random.default_rng(seeds)
    tables = [made(seeds, 60, *parts, generator) for _ in range(400)]
    held = np.mean([abs(table.mean()) <= half_width(table) for table in tables])
    assert 0.915 <= held <= 0.995  # 400 draws at 0.95 have a standard error of 0.011


def test_one_seed_says_nothing_of_others():
    found = difference(TABLE[:1])
    assert found == Difference(TABLE[0].mean(), None, None, None, 1)
    assert found.sign() == 0


def test_a_run_that_diverged_gives_no_interval():
    table = TABLE.copy()
    table[1, 2] = np.nan
    found = difference(table)
    assert math.isnan(found.mean)
    assert found.half_width is None


@pytest.mark.parametrize(("shift", "sign"), [(9.0, 1), (-9.0, -1), (0.0, 0)])
def test_the_sign_is_told_where_it_is_known(shift, sign):
    assert difference(TABLE - TABLE.mean() + shift).sign() == sign


def test_equal_runs_do_not_differ():
    assert difference(np.zeros((3, 5))) == Difference(0.0, 0.0, 0.0, 0.0, 3)
    assert difference(np.zeros((3, 5))).sign() == 0
    assert module.SEED == 0  # of the resampling, whatever the runs' own
