"""Engine ``tune``: whichever proves fastest on the first batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from trlearner.engines import compiled
from trlearner.engines.graph import say

ROUNDS = 5
WORTH_TRYING = 30.0
"""Seconds: about what compiling costs. It is tried where the planned steps would take longer."""

Run = Callable[[str], None]


def fastest(run: Run, eager: tuple[str, ...], planned_steps: int | None) -> str:
    """The name of the engine that gets through the planned steps first.

    Args:
        run: Takes one whole step with the engine of that name, gradient included, and leaves no trace.
        eager: The engines to try that need no graph; one that raises is out.
        planned_steps: How many steps are to come. Compiling is tried only where that is known and
            the time that it may save is worth it.

    Raises:
        Exception: What the last engine raised, where none could run.
    """
    seconds = _interleaved(run, eager)
    best = min(seconds, key=lambda name: seconds[name])
    told = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
    if planned_steps is not None and planned_steps * seconds[best] > WORTH_TRYING:
        started = time.perf_counter()
        try:
            run(compiled.ENGINE.name)
        except RuntimeError as error:
            told += f", compiled failed ({str(error).splitlines()[0]})"
        else:
            cost = time.perf_counter() - started
            step = _interleaved(run, (compiled.ENGINE.name,))[compiled.ENGINE.name]
            told += f", compiled {1e3 * step:.1f} ms after {cost:.0f} s"
            # What was spent on compiling is spent, but the next process decides alike.
            if cost + planned_steps * step < planned_steps * seconds[best]:
                best = compiled.ENGINE.name
    say(f"engine='tune' took {best!r}: {told} a step.")
    return best


def _interleaved(run: Run, names: tuple[str, ...]) -> dict[str, float]:
    """Median seconds by engine, taken in turns after a first round that warms up."""
    times: dict[str, list[float]] = {}
    failure: Exception | None = None
    for name in names:
        try:
            run(name)
            times[name] = []
        except (RuntimeError, NotImplementedError, ValueError) as error:
            failure = error
    if failure is not None and not times:
        raise failure
    for _ in range(ROUNDS):
        for name, taken in times.items():
            started = time.perf_counter()
            run(name)
            taken.append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}
