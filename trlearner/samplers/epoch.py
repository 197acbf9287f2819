"""Where an epoch stands: which batches were drawn, and which of them the learner has not reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trlearner.samplers.draw import systematic


class Drawn(NamedTuple):
    """A batch that was drawn."""

    positions: list[int]  # among all tasks
    chances: list[float]  # the probability of each when it was drawn


class Epoch:
    """Draws an epoch of batches, and keeps each until an update reports it.

    Args:
        tasks: How many there are.
        batch_size: Tasks a batch.
        generator: Draws them.

    Attributes:
        draws: How often each task was drawn.
    """

    def __init__(self, tasks: int, batch_size: int, generator: torch.Generator) -> None:
        self.batch_size, self.generator = batch_size, generator
        self.draws = torch.zeros(tasks, dtype=torch.int64)
        self._kept: list[Drawn] = []
        self._yielded = 0  # of the kept ones; after a restart the others come again
        self._position, self._resumes = 0, False

    def batches(self, count: int, weights: Callable[[], Tensor]) -> Iterator[list[int]]:
        """Positions of an epoch's tasks; after a restart, what is left of the epoch that was stopped."""
        if not (self._resumes and (self._kept or self._position < count)):
            self._kept, self._yielded, self._position = [], 0, 0
        self._resumes = False
        while self._yielded < len(self._kept) or self._position < count:
            if self._yielded == len(self._kept):
                self._draw(weights())
            self._yielded += 1
            yield self._kept[self._yielded - 1].positions

    def _draw(self, p: Tensor) -> None:
        positions = systematic(p, self.batch_size, self.generator)
        self._kept.append(Drawn(positions.tolist(), p[positions.to(p.device)].tolist()))
        self._position += 1
        self.draws += torch.bincount(positions.cpu(), minlength=len(self.draws))

    def reported(self, positions: Sequence[int]) -> None:
        """Forgets this batch, and all that were yielded before it."""
        yielded = [drawn.positions for drawn in self._kept[: self._yielded]]
        if positions in yielded:
            done = yielded.index(list(positions)) + 1
            self._kept, self._yielded = self._kept[done:], self._yielded - done

    def chances(self, positions: Sequence[int]) -> list[float] | None:
        """The probabilities with which a batch that is not reported yet was drawn."""
        return next((d.chances for d in self._kept if d.positions == positions), None)

    def state_dict(self, reports: bool) -> dict[str, Any]:
        """Where it stands; without any reports, no batch that was drawn comes again."""
        return {
            "draws": self.draws.clone(),
            "position": self._position,
            "kept": [tuple(drawn) for drawn in self._kept] if reports else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there: the next epoch is the rest of that one."""
        self.draws = state["draws"].cpu().clone()
        self._position, self._resumes = state["position"], True
        self._kept, self._yielded = [Drawn(*drawn) for drawn in state["kept"]], 0
