"""The running relations, against a loop over everything that was seen."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trlearner.diagnostics.monitor import history
from trlearner.diagnostics.monitor.history import History


@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), max_size=5))
def test_means_and_counts_are_those_of_a_loop(batches: list[list[str]]) -> None:
    seen: dict[tuple[str, str], list[float]] = {}
    kept, draw = History(), np.random.default_rng(0)
    for names in batches:
        m = draw.uniform(-1, 1, (len(names), len(names)))
        kept.add([names], m[None])
        for i, j in itertools.permutations(range(len(names)), 2):
            seen.setdefault((names[i], names[j]), []).append(m[i, j])
    mean, count = kept.mean(), kept.seen()
    assert kept.names == list(dict.fromkeys(name for names in batches for name in names))
    for (i, a), (j, b) in itertools.product(enumerate(kept.names), repeat=2):
        values = seen.get((a, b), [])
        assert count[i, j] == len(values)
        assert mean[i, j] == pytest.approx(np.mean(values)) if values else np.isnan(mean[i, j])


def test_several_steps_at_once_are_one_after_the_other() -> None:
    draw = np.random.default_rng(0)
    m = draw.uniform(-1, 1, (3, 2, 2))
    names = [["a", "b"], ["b", "c"], ["a", "a"]]
    together, apart = History(), History()
    together.add(names, m)
    for one, relations in zip(names, m, strict=True):
        apart.add([one], relations[None])
    np.testing.assert_array_equal(together.mean(), apart.mean())
    np.testing.assert_array_equal(together.seen(), apart.seen())


def test_what_is_no_number_was_not_seen() -> None:
    kept = History()
    kept.add([["a", "b"]], np.array([[[1.0, np.nan], [0.5, 1.0]]]))
    assert kept.seen().tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_names_beyond_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LIMIT", 2)
    kept = History()
    kept.add([["a", "b"]], np.eye(2)[None])
    assert not kept.full
    kept.add([["c", "b", "a"]], np.full((1, 3, 3), 0.5))
    assert kept.full
    assert kept.names == ["a", "b"]
    assert kept.mean()[0, 1] == 0.25


def test_it_goes_on_from_its_state() -> None:
    one, other = History(), History()
    one.add([["a", 3]], np.full((1, 2, 2), 0.5))
    state = one.state_dict()
    other.load_state_dict(state)
    for kept in (one, other):
        kept.add([[3, "c"]], np.full((1, 2, 2), 0.1))
    assert other.names == one.names == ["a", 3, "c"]
    np.testing.assert_array_equal(other.mean(), one.mean())
    assert torch.equal(state["count"], torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
