"""The bar, where there is a terminal; what a log gets instead."""

import sys

import pytest
from trlearner.experiments.data.progress import Bar, Progress, Standing, Tally


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


def test_a_terminal_has_a_bar(terminal: None) -> None:
    pytest.importorskip("rich")
    with Bar() as bar:
        assert bar.move(1, 4, "one of four")
        [task] = bar.rich.tasks
        assert (task.completed, task.total, task.description) == (1, 4, "one of four")
    assert not bar.rich.live.is_started


def test_progress_and_tally_move_the_bar(terminal: None) -> None:
    pytest.importorskip("rich")
    with Progress(2, 3) as progress:
        progress.advance(1, 2, "fine")
        assert "seed 2/2  step 2/3  fine, " in progress.rich.tasks[0].description
    with Tally() as tally:
        tally.show(Standing(done=1, failed=1, running=2, total=5))
        assert tally.rich.tasks[0].completed == 2


def test_without_rich_there_are_lines(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with Progress(1, 8, lines=4) as progress:
        for step in range(1, 9):
            progress.advance(0, step, "fine")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"step {n}/8" for n in (2, 4, 6, 8)]
    assert lines[-1].endswith("fine, 0 s left")
