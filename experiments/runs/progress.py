"""How training stands, in a terminal or in a log."""

from __future__ import annotations

import math
import time
from types import TracebackType

from trlearner.experiments.runs.bar import Bar, span


class Progress:
    """A bar where there is a terminal (and rich), else a line now and then.

    Args:
        seeds: How many seeds there are.
        steps: Meta-steps of each learner.
        learners: How many are trained for each seed.
        lines: Lines per learner, where lines are printed.
    """

    def __init__(self, seeds: int, steps: int, learners: int = 1, lines: int = 4) -> None:
        self.seeds, self.steps, self.learners = seeds, steps, learners
        self.every = math.ceil(steps / lines)
        self.done = 0
        self.start = time.perf_counter()
        self.bar = Bar()

    def __enter__(self) -> Progress:
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def advance(self, seed: int, step: int, note: str) -> None:
        """One more meta-step is done; `step` counts from 1, `note` says how things stand."""
        self.done += 1
        total = self.seeds * self.learners * self.steps
        left = span((time.perf_counter() - self.start) / self.done * (total - self.done))
        text = f"seed {seed + 1}/{self.seeds}  step {step}/{self.steps}  {note}, {left} left"
        shown = self.bar.show(self.done, total, text)
        if not shown and (step % self.every == 0 or step == self.steps):
            print(text, flush=True)
