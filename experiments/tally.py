"""How a sweep stands, in a terminal or in a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Standing:
    """Numbers of runs.

    Attributes:
        done: With a result.
        failed: Given up.
        running: At work in this sweep.
        total: All of them.
    """

    done: int
    failed: int
    running: int
    total: int

    @property
    def left(self) -> int:
        """Not settled yet."""
        return self.total - self.done - self.failed

    @property
    def waiting(self) -> bool:
        """Whether others are at all that is left."""
        return self.left > 0 and self.running == 0


class Tally:
    """A bar where there is a terminal (and rich), else a line whenever a run has ended."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first: Standing | None = None
        self.last: Standing | None = None
        self.bar = _rich_bar() if sys.stdout.isatty() else None

    def __enter__(self) -> Tally:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, now: Standing) -> None:
        """Tells what is new, if anything is."""
        self.first = self.first or now
        text = self.text(now)
        if self.bar is not None:
            settled = now.done + now.failed
            self.bar.update(self.task, total=now.total, completed=settled, description=text)
        elif self.last is None or now.left != self.last.left or now.waiting != self.last.waiting:
            print(text, flush=True)
        self.last = now

    def text(self, now: Standing) -> str:
        """Where things stand and how long they may take, judged by the runs that ended so far."""
        parts = [f"{now.done}/{now.total} runs done"]
        parts += [f"{now.failed} failed"] if now.failed else []
        parts += [f"{now.running} at work"] if now.running else []
        parts += [f"waiting for {now.left} that others are at"] if now.waiting else []
        ended = self.first.left - now.left if self.first else 0
        if ended and now.left:
            each = (time.perf_counter() - self.start) / ended
            parts.append(f"about {span(each * now.left)} left")
        return ", ".join(parts)


def span(seconds: float) -> str:
    """A duration as one says it.

    Example:
        >>> span(40), span(400), span(8000)
        ('40 s', '7 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _rich_bar() -> Any:
    """A rich progress bar, or nothing where rich is not installed."""
    try:
        from rich import progress
    except ImportError:
        return None
    return progress.Progress(
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
    )
