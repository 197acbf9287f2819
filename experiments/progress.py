"""Progress that reads well in a terminal and in a log."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """A bar where there is a terminal (and rich), a line now and then where there is none.

    Args:
        seeds: How many seeds there are.
        steps: Meta-steps of each.
        lines: Lines per seed, where lines are printed.
    """

    def __init__(self, seeds: int, steps: int, lines: int = 4) -> None:
        self.seeds, self.steps = seeds, steps
        self.every = math.ceil(steps / lines)
        self.done = 0
        self.start = time.perf_counter()
        self.bar = _rich_bar() if sys.stdout.isatty() else None

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.seeds * self.steps, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, seed: int, step: int, note: str) -> None:
        """One more meta-step is done; `step` counts from 1, `note` says how things stand."""
        self.done += 1
        each = (time.perf_counter() - self.start) / self.done
        name = f"seed {seed + 1}/{self.seeds}"
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=name, note=note)
        elif step % self.every == 0 or step == self.steps:
            left = clock(each * (self.seeds * self.steps - self.done))
            print(f"{name}  step {step}/{self.steps}  {note}, {left} left", flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    Example:
        >>> clock(75.4)
        '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _rich_bar() -> Any:
    """A rich progress bar, or nothing where rich is not installed."""
    try:
        from rich import progress
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    )
