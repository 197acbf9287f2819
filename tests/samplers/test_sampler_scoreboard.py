"""Running standardization against a loop, and scores that are kept for tasks."""

import copy

import pytest
import torch

from trlearner.samplers.scoreboard import HORIZON, LIMIT, Scoreboard


def looks(count: int, tasks: int = 5, scores: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [3 * i + torch.randn(tasks, scores, generator=g) for i in range(count)]


@pytest.mark.parametrize("count", [1, 3, HORIZON + 30])
def test_the_mean_and_spread_are_what_the_loop_says(count: int) -> None:
    """Equal weights at first; from the horizon on, each look back counts 1 - 1 / HORIZON as much."""
    board, rows = Scoreboard(0, 2), looks(count)
    for row in rows:
        board.note(row, None)
    weights: list[float] = []
    for i in range(count):
        step = 1 / min(i + 1, HORIZON)
        weights = [(1 - step) * w for w in weights] + [step]
    for column in range(2):
        mean = sum(w * float(row[:, column].mean()) for w, row in zip(weights, rows, strict=True))
        square = sum(
            w * float((row[:, column] ** 2).mean()) for w, row in zip(weights, rows, strict=True)
        )
        spread = (square - mean**2) ** 0.5
        wanted = [(float(s) - mean) / spread for s in rows[-1][:, column]]
        found = board.standardize(rows[-1])[:, column].tolist()
        assert found == pytest.approx(wanted, rel=1e-3)


def test_looks_at_nothing_but_broken_scores_do_not_count() -> None:
    board = Scoreboard(0, 2)
    board.note(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), None)
    before = copy.deepcopy(board.state_dict())
    for broken in (torch.nan, torch.inf, 1e30):  # the square of the last is not finite
        board.note(torch.full((4, 2), broken), None)
        assert all(torch.equal(t, board.state_dict()[name]) for name, t in before.items())
    board.note(torch.tensor([[2.0, 1e30], [2.0, 4.0]]), None)
    assert board.square.isfinite().all()


def test_broken_and_equal_scores_count_as_average() -> None:
    scores = torch.tensor([[1.0, 7.0], [torch.nan, 7.0], [3.0, 7.0], [1e9, torch.inf]])
    board = Scoreboard(0, 2)
    found = board.note(scores, None)
    assert board.mean.tolist() == [2.0, 7.0]  # rows with a broken score are left out
    assert found[:3].tolist() == [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert found[3, 0] == LIMIT


def test_a_task_keeps_its_last_score() -> None:
    board = Scoreboard(4, 1)
    first = board.note(torch.tensor([[1.0], [3.0]]), [0, 1])
    second = board.note(torch.tensor([[9.0], [5.0]]), [1, 3])
    assert board.table[0] == first[0]
    assert torch.equal(board.table[[1, 3]], second)
    assert board.table[2] == 0
    assert board.known.tolist() == [True, True, False, True]
    assert board.summary(("one",))["scores/one"].shape == (3,)


def test_looking_leaves_no_trace() -> None:
    board = Scoreboard(0, 2)
    assert (board.standardize(torch.ones(3, 2)) == 0).all()  # nothing to compare with yet
    assert board.summary(("a", "b")) == {}
    board.note(looks(1)[0], None)
    before = copy.deepcopy(board.state_dict())
    board.standardize(torch.randn(3, 2))
    after = board.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items())


def test_a_state_is_all_of_it() -> None:
    one, other = Scoreboard(5, 2), Scoreboard(5, 2)
    for row in looks(3):
        one.note(row, list(range(5)))
    other.load_state_dict(one.state_dict())
    one.note(looks(4)[3], list(range(5)))
    assert not torch.equal(other.table, one.table)  # what comes later leaves it as it is
    other.note(looks(4)[3], list(range(5)))
    assert torch.equal(one.table, other.table)
