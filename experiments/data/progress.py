"""How training and sweeps stand: a bar where there is a terminal (and rich), else lines."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any


class Bar:
    """A bar where there is a terminal (and rich), else nothing.

    Example:
        >>> with Bar() as bar:
        ...     if not bar.move(1, 4, "1/4 runs done"):  # a test has no terminal
        ...         print("1/4 runs done")
        1/4 runs done
    """

    def __init__(self) -> None:
        self.rich = _rich() if sys.stdout.isatty() else None
        self.start = time.perf_counter()

    def __enter__(self) -> Any:
        if self.rich is not None:
            self.rich.start()
            self.task = self.rich.add_task("", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.rich is not None:
            self.rich.stop()

    def move(self, done: int, total: int, text: str) -> bool:
        """How far things are; whether there is a bar that shows it."""
        if self.rich is not None:
            self.rich.update(self.task, total=total, completed=done, description=text)
        return self.rich is not None

    def left(self, done: int, left: int) -> str:
        """How long the rest may take, judged by what was done so far."""
        return span((time.perf_counter() - self.start) / done * left)


class Progress(Bar):
    """Training: a bar, or a line now and then.

    Args:
        seeds: How many seeds there are.
        steps: Meta-steps of each learner.
        learners: How many are trained for each seed.
        lines: Lines per learner, where lines are printed.
    """

    def __init__(self, seeds: int, steps: int, learners: int = 1, lines: int = 4) -> None:
        super().__init__()
        self.seeds, self.steps, self.learners = seeds, steps, learners
        self.every = math.ceil(steps / lines)
        self.done = 0

    def advance(self, seed: int, step: int, note: str) -> None:
        """One more meta-step is done; `step` counts from 1, `note` says how things stand."""
        self.done += 1
        total = self.seeds * self.learners * self.steps
        left = self.left(self.done, total - self.done)
        text = f"seed {seed + 1}/{self.seeds}  step {step}/{self.steps}  {note}, {left} left"
        shown = self.move(self.done, total, text)
        if not shown and (step % self.every == 0 or step == self.steps):
            print(text, flush=True)


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


class Tally(Bar):
    """A sweep: a bar, or a line whenever a run has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Standing | None = None
        self.last: Standing | None = None

    def show(self, now: Standing) -> None:
        """Tells what is new, if anything is."""
        self.first = self.first or now
        text = self.text(now)
        shown = self.move(now.done + now.failed, now.total, text)
        news = self.last is None or (now.left, now.waiting) != (self.last.left, self.last.waiting)
        if news and not shown:
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
            parts.append(f"about {self.left(ended, now.left)} left")
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


def _rich() -> Any:
    try:
        from rich import progress
    except ImportError:
        return None
    return progress.Progress(
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
    )
