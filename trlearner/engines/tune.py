"""Engine ``tune``: whichever proves fastest on the first batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from trlearner.engines.graph import say

ROUNDS = 5

Run = Callable[[str], None]


def fastest(run: Run, names: tuple[str, ...]) -> str:
    """The name of the fastest engine.

    Args:
        run: Takes one whole step with the engine of that name, gradient included, and leaves no trace.
        names: The engines to try; one that raises is out.

    Raises:
        Exception: What the last engine raised, where none could run.
    """
    seconds = _interleaved(run, names)
    best = min(seconds, key=lambda name: seconds[name])
    told = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
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
