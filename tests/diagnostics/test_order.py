"""The order of a hierarchical clustering."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import average, leaves_list
from scipy.spatial.distance import squareform

from trlearner.diagnostics.monitor.order import clustered


def similarity(tasks: int, seed: int) -> np.ndarray:
    m = np.random.default_rng(seed).uniform(-1, 1, (tasks, tasks))
    return (m + m.T) / 2


def clusters(distances: np.ndarray) -> list[set[int]]:
    """Every cluster that average linkage forms, by scipy."""
    found = [{i} for i in range(len(distances))]
    condensed = squareform(distances, checks=False)
    for a, b, *_ in average(condensed):
        found.append(found[int(a)] | found[int(b)])
    return found


@given(st.integers(2, 12), st.integers(0, 2**16))
def test_every_cluster_of_scipys_stands_together(tasks: int, seed: int) -> None:
    m = similarity(tasks, seed)
    distances = 2 - m
    np.fill_diagonal(distances, 0)
    place = {int(task): i for i, task in enumerate(clustered(m))}
    assert sorted(place) == list(range(tasks))
    for cluster in clusters(distances):
        places = sorted(place[task] for task in cluster)
        assert places == list(range(places[0], places[0] + len(places)))


def test_families_stand_together_and_the_nearest_ends_meet() -> None:
    points = np.array([0.0, 10.0, 1.0, 12.0, 2.0, 11.0])
    m = -np.abs(points[:, None] - points)
    found = points[clustered(m)]
    assert found.tolist() in ([0, 1, 2, 10, 11, 12], [12, 11, 10, 2, 1, 0])


def test_it_does_not_join_more_at_random_than_scipy() -> None:
    # Neighbours in our order are at least as similar as in scipy's, which turns no cluster around.
    m = similarity(40, 0)
    distances = 2 - m
    np.fill_diagonal(distances, 0)
    theirs = leaves_list(average(squareform(distances, checks=False)))
    ours = clustered(m)
    assert m[ours[1:], ours[:-1]].mean() >= m[theirs[1:], theirs[:-1]].mean()


@pytest.mark.parametrize("tasks", [0, 1])
def test_nothing_to_order(tasks: int) -> None:
    assert clustered(np.ones((tasks, tasks))).tolist() == list(range(tasks))


def test_what_is_no_number_counts_as_dissimilar() -> None:
    m = np.full((4, 4), np.nan)
    m[0, 2] = m[2, 0] = 0.9
    order = clustered(m).tolist()
    assert abs(order.index(0) - order.index(2)) == 1
