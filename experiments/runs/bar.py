"""A line that moves while one waits, and durations as one says them."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """A bar where there is a terminal (and rich), else nothing.

    Example:
        >>> with Bar() as bar:
        ...     if not bar.show(1, 4, "1/4 runs done"):  # a test has no terminal
        ...         print("1/4 runs done")
        1/4 runs done
    """

    def __init__(self) -> None:
        self.rich = _rich() if sys.stdout.isatty() else None

    def __enter__(self) -> Bar:
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

    def show(self, done: int, total: int, text: str) -> bool:
        """How far things are; whether there is a bar that shows it."""
        if self.rich is not None:
            self.rich.update(self.task, total=total, completed=done, description=text)
        return self.rich is not None


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
