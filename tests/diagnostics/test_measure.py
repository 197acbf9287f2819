"""The numbers about relations, against slow loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from trlearner.diagnostics.monitor import measure

SEEDS = st.integers(0, 2**16)
SIZES = st.integers(2, 7)


def symmetric(tasks: int, seed: int) -> np.ndarray:
    m = np.random.default_rng(seed).uniform(-1, 1, (tasks, tasks))
    m = (m + m.T) / 2
    np.fill_diagonal(m, 1.0)
    return m


def pairs(tasks: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(tasks) for j in range(tasks) if i != j]


@given(SIZES, SEEDS)
def test_entropy_and_neighbours_are_those_of_a_loop(tasks: int, seed: int) -> None:
    weights = np.abs(symmetric(tasks, seed))
    weights[0, 1:] = 0.0
    expected = []
    for row in weights:
        total = sum(row)
        expected.append(-sum(w / total * math.log(w / total) for w in row if w > 0))
    np.testing.assert_allclose(measure.row_entropy(weights), expected, atol=1e-12)
    mean = sum(math.exp(e) for e in expected) / tasks
    assert measure.neighbours(weights) == pytest.approx(mean)


def test_k_equal_neighbours_count_as_k() -> None:
    weights = np.zeros((5, 5))
    weights[:, :3] = 1 / 3
    assert measure.neighbours(weights) == pytest.approx(3.0)


def test_a_row_without_weights_has_no_entropy() -> None:
    assert measure.row_entropy(np.zeros((2, 2))).tolist() == [0.0, 0.0]


@given(SIZES, SEEDS)
def test_shares_drift_and_disagreement_are_those_of_a_loop(tasks: int, seed: int) -> None:
    m, other = symmetric(tasks, seed), symmetric(tasks, seed + 1)
    count = len(pairs(tasks))
    negative = sum(m[i, j] < 0 for i, j in pairs(tasks)) / count
    assert measure.negative_share(m) == pytest.approx(negative)
    change = sum(abs(m[i, j] - other[i, j]) for i, j in pairs(tasks)) / count
    assert measure.drift(m, other) == pytest.approx(change)
    # Two heads differ by twice their standard deviation.
    assert measure.disagreement(np.stack([m, other])) == pytest.approx(change / 2)


def test_one_task_has_no_pairs() -> None:
    one = np.ones((1, 1))
    assert measure.negative_share(one) == measure.drift(one, one) == 0.0
    assert measure.disagreement(one[None]) == 0.0
    assert math.isnan(measure.rank_correlation(one, one))


@given(SIZES, SEEDS)
def test_purity_is_that_of_a_loop(tasks: int, seed: int) -> None:
    m = symmetric(tasks, seed)
    families = np.random.default_rng(seed).integers(0, 3, tasks).tolist()
    right = []
    for i in range(tasks):
        others = [j for j in range(tasks) if j != i]
        if any(families[j] == families[i] for j in others):
            best = max(others, key=lambda j: m[i, j])
            right.append(families[best] == families[i])
    found = measure.purity(m, families)
    assert math.isnan(found) if not right else found == pytest.approx(sum(right) / len(right))


@given(st.integers(3, 7), SEEDS)
def test_rank_correlation_is_scipys_with_ties(tasks: int, seed: int) -> None:
    m = symmetric(tasks, seed)
    truth = symmetric(tasks, seed + 1).round(1)
    flat = [(m[i, j], truth[i, j]) for i, j in pairs(tasks)]
    if len({t for _, t in flat}) == 1:
        assert math.isnan(measure.rank_correlation(m, truth))
        return
    expected = spearmanr(*zip(*flat, strict=True)).statistic
    assert measure.rank_correlation(m, truth) == pytest.approx(expected)


def test_cosine_of_a_zero_vector_is_not_a_number() -> None:
    assert math.isnan(measure.cosine(np.zeros(2), np.ones(2)))
    assert measure.cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
