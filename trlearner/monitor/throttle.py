"""When to take a closer look, so that looking takes no more than its share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throttle:
    """Allows a look at once, and then while all of them together took at most a share of the time.

    Args:
        share: Of the time that has passed.
        growth: Each look waits until so many times as much time has passed as at the last one. With 1.1,
            any run has a hundred or two, however long it is.
        clock: In seconds.
    """

    def __init__(
        self, share: float, growth: float = 1.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.share = share
        self.growth = growth
        self._clock = clock
        self._started = clock()
        self._spent = 0.0
        self._next = 0.0

    def allows(self) -> bool:
        """Whether a look is due."""
        passed = self._clock() - self._started
        return passed >= self._next and self._spent <= self.share * passed

    @contextmanager
    def spending(self, look: bool) -> Iterator[None]:
        """Counts the time of what is inside; after a look the next one has to wait."""
        before = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self._spent += now - before
            if look:
                self._next = self.growth * (now - self._started)
