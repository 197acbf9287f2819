"""When to do what takes time, so that all of it together takes no more than its share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throttle:
    """Allows each kind of work at once, and then within a share of the time.

    Work is allowed where all of it together, with what it took last, stays within the share.

    Args:
        share: Of the time that has passed; 1 sets no limit.
        growth: For each kind of work, by name: it waits until so many times as much time has passed as when
            it was last done. With 1.1 it is done a hundred or two times in any run, however long.
        clock: In seconds.
    """

    def __init__(
        self,
        share: float,
        growth: dict[str, float],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.share = share
        self.growth = growth
        self._clock = clock
        self._started = clock()
        self._spent = 0.0
        self._last = 0.0
        self._next = dict.fromkeys(growth, 0.0)

    def allowed(self) -> set[str]:
        """The kinds of work that may be done now."""
        passed = self._clock() - self._started
        if self._last and self.share < 1 and self._spent + self._last > self.share * passed:
            return set()
        return {name for name, after in self._next.items() if passed >= after}

    @contextmanager
    def spending(self, done: set[str]) -> Iterator[None]:
        """Counts the time of what is inside, which may be no such work at all.

        Args:
            done: The kinds of work inside.
        """
        before = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self._spent += now - before
            if done:
                self._last = now - before
            for name in done:
                self._next[name] = self.growth[name] * (now - self._started)
