"""Steps of several contenders timed in turns, so that a drifting machine hits all alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

TURN = 0.05
"""Seconds: a turn is as many steps as fit, so that short ones run as warm as in training."""

FEWEST = 3
"""So many turns even a slow contender gets."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What was measured of one contender.

    Attributes:
        milliseconds: A step, one value a turn.
        steps: In a turn.
        busy: CPU seconds a second, over all threads: above the threads asked for, it used more.
    """

    milliseconds: tuple[float, ...]
    steps: int
    busy: float

    @property
    def median(self) -> float:
        """Milliseconds a step."""
        return statistics.median(self.milliseconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Milliseconds a step; a single turn has no spread."""
        if len(self.milliseconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return low, high


def measure(
    steps: Mapping[str, Step], rounds: int, budget: float, clock: Step = time.perf_counter
) -> dict[str, Timing]:
    """Times every step in `rounds` turns, fewer where they would take more than `budget` seconds.

    Args:
        steps: By name; each has run before, so that nothing is left to compile.
        rounds: Turns of each contender.
        budget: Seconds for the turns of one contender; at least `FEWEST` turns are taken.
        clock: Returns seconds.
    """
    seconds = {name: _run(step, 1, clock)[0] for name, step in steps.items()}
    repeats = {name: max(1, round(TURN / max(s, 1e-9))) for name, s in seconds.items()}
    turns = {
        name: min(rounds, max(FEWEST, int(budget / max(s * repeats[name], 1e-9))))
        for name, s in seconds.items()
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    gc.collect()
    gc.freeze()  # makes the collections below cheap
    try:
        for names in schedule(turns):
            for name in names:
                gc.collect()  # or one contender's garbage would be another's time
                found[name].append(_run(steps[name], repeats[name], clock))
    finally:
        gc.unfreeze()
    return {name: _timing(values, repeats[name]) for name, values in found.items()}


def schedule(turns: Mapping[str, int]) -> Iterator[list[str]]:
    """Who runs in each round, in an order of its own; those of few turns are spread evenly.

    Example:
        >>> [sorted(names) for names in schedule({"a": 4, "b": 2})]
        [['a'], ['a', 'b'], ['a'], ['a', 'b']]
    """
    rounds = max(turns.values(), default=0)
    for turn in range(rounds):
        names = [n for n, k in turns.items() if (turn + 1) * k // rounds > turn * k // rounds]
        random.Random(turn).shuffle(names)
        yield names


def _run(step: Step, repeats: int, clock: Step) -> tuple[float, float]:
    """Seconds a step, by the clock and of the CPU."""
    start, busy = clock(), time.process_time()
    for _ in range(repeats):
        step()
    return (clock() - start) / repeats, (time.process_time() - busy) / repeats


def _timing(turns: list[tuple[float, float]], repeats: int) -> Timing:
    wall, busy = (sum(column) for column in zip(*turns, strict=True))
    return Timing(tuple(1e3 * seconds for seconds, _ in turns), repeats, busy / max(wall, 1e-9))
