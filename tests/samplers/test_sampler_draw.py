"""Probabilities and draws: what is promised of them holds at a fixed seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trlearner.samplers.draw import floored, systematic


def logits(seed: int, tasks: int, scale: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(tasks, generator=g, dtype=torch.float64)


@given(
    seed=st.integers(0, 1000),
    tasks=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    floor=st.sampled_from([0.01, 0.3, 1.0]),
    size=st.integers(1, 40),
)
def test_probabilities_keep_their_bounds(
    seed: int, tasks: int, scale: float, floor: float, size: int
) -> None:
    size = min(size, tasks)
    a = logits(seed, tasks, scale)
    free, p = floored(a, floor), floored(a, floor, 1 / size)
    for found in (free, p):
        assert found.sum().item() == pytest.approx(1.0, abs=1e-12)
        assert (found >= floor / tasks - 1e-12).all()
    assert (p <= 1 / size + 1e-12).all()
    contested = p < 1 / size - 1e-9
    if contested.any():  # below the cap, probabilities keep their proportions
        ratio = p[contested] / free[contested]
        assert torch.allclose(ratio, ratio[0].expand_as(ratio))
    chosen = systematic(p, size, torch.Generator().manual_seed(seed))
    assert len(set(chosen.tolist())) == size


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 3])
def test_frequencies_match_probabilities(size: int) -> None:
    p = floored(logits(0, 10, 1.0), 0.1, 1 / size)
    g = torch.Generator().manual_seed(0)
    rounds = 5000
    draws = torch.cat([systematic(p, size, g) for _ in range(rounds)])
    counts = torch.bincount(draws, minlength=10)
    assert stats.chisquare(counts.numpy(), (rounds * size * p).numpy()).pvalue > 0.01


@pytest.mark.full
def test_places_within_a_batch_are_alike() -> None:
    p = floored(logits(0, 6, 1.0), 0.1, 1 / 3)
    g = torch.Generator().manual_seed(0)
    rows = torch.stack([systematic(p, 3, g) for _ in range(3000)])
    for place in range(3):
        counts = torch.bincount(rows[:, place], minlength=6)
        assert stats.chisquare(counts.numpy(), (3000 * p).numpy()).pvalue > 0.01
