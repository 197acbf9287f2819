"""Which batches were drawn, which are on their way, and which come again after a stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trlearner.samplers.draw import systematic


class Drawn(NamedTuple):
    """A batch of tasks on its way to the learner."""

    positions: list[int]  # among all tasks
    chances: list[float]  # the probability of each when it was drawn


class Itinerary:
    """Draws epochs of batches, and remembers those that have not arrived.

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
        self._flight: deque[Drawn] = deque()
        self._again: list[Drawn] = []
        self._position, self._resumes = 0, False

    def epoch(self, batches: int, weights: Callable[[], Tensor]) -> Iterator[list[int]]:
        """Batches of positions; after a restart, those that are left of the epoch that was stopped."""
        if not (self._resumes and (self._again or self._position < batches)):
            self._position = 0
            self._flight.clear()
        self._resumes = False
        while self._again or self._position < batches:
            if self._again:
                drawn = self._again.pop(0)
            else:
                drawn = self._draw(weights())
                self._position += 1
                self.draws.index_add_(
                    0, torch.tensor(drawn.positions), torch.ones(self.batch_size, dtype=torch.int64)
                )
            self._flight.append(drawn)
            yield drawn.positions

    def arrived(self, positions: Sequence[int]) -> None:
        """This batch, and whatever was drawn before it, is not on its way any more."""
        if any(drawn.positions == positions for drawn in self._flight):
            while self._flight.popleft().positions != positions:
                pass

    def chances(self, positions: Sequence[int]) -> list[float] | None:
        """The probabilities with which a batch on its way was drawn."""
        return next((d.chances for d in self._flight if d.positions == positions), None)

    def _draw(self, p: Tensor) -> Drawn:
        positions = systematic(p, self.batch_size, self.generator)
        return Drawn(positions.tolist(), p[positions.to(p.device)].tolist())

    def state_dict(self, confirmed: bool) -> dict[str, Any]:
        """Where it stands.

        Args:
            confirmed: Whether arrivals are reported; otherwise nothing is known to be on its way.
        """
        flight = [*self._flight, *self._again] if confirmed else []
        return {
            "draws": self.draws.clone(),
            "position": self._position,
            "flight": [tuple(drawn) for drawn in flight],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there: the next epoch is the rest of that one."""
        self.draws = state["draws"].cpu().clone()
        self._position, self._resumes = state["position"], True
        self._again = [Drawn(*drawn) for drawn in state["flight"]]
        self._flight.clear()
