"""How a sweep stands, in a terminal or in a log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from trlearner.experiments.runs.bar import Bar, span


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
        self.bar = Bar()

    def __enter__(self) -> Tally:
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def show(self, now: Standing) -> None:
        """Tells what is new, if anything is."""
        self.first = self.first or now
        text = self.text(now)
        shown = self.bar.show(now.done + now.failed, now.total, text)
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
            each = (time.perf_counter() - self.start) / ended
            parts.append(f"about {span(each * now.left)} left")
        return ", ".join(parts)
