"""Limits of plots in which something went wild."""

import math

import pytest
from matplotlib.axes import Axes
from trlearner.experiments.reporting import canvas


@pytest.fixture
def place() -> Axes:
    _, [place] = canvas.grid(1)
    return place


def test_everything_is_seen_where_nothing_is_wild(place: Axes) -> None:
    canvas.frame(place, [2.0, 3.0, math.nan], [0.5, 0.4, math.nan])
    low, high = place.get_ylim()
    assert low < 1.5 and high > 3.4 and high - low < 2.5
    assert not place.texts


def test_what_diverged_is_counted_and_does_not_set_the_limits(place: Axes) -> None:
    canvas.frame(place, [2.0, 2.2, 2.1, 7e15], [0.1, 0.1, 0.1, 9e16])
    low, high = place.get_ylim()
    assert 1.8 < low < 1.9 and 2.3 < high < 2.4
    assert [text.get_text() for text in place.texts] == ["1 beyond"]


def test_an_interval_of_two_seeds_is_cut(place: Axes) -> None:
    canvas.frame(place, [2.0, 2.2, 5.0], [0.1, 0.1, 36.0])
    low, high = place.get_ylim()
    assert low > 1.0 and 5.3 < high < 6.0
    assert not place.texts


@pytest.mark.parametrize("means", [[], [math.nan], [0.0, 0.0]])
def test_little_is_no_error(place: Axes, means: list[float]) -> None:
    canvas.frame(place, means, [math.nan] * len(means))
    low, high = place.get_ylim()
    assert low < high
