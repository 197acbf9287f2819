"""What all steps so far have seen of each pair of known tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

LIMIT = 512
"""So many names are kept; tasks of other names are left out."""


class History:
    """Running mean of the relation between names (of tasks, or of their families).

    Attributes:
        full: Whether some name found no room.
    """

    def __init__(self) -> None:
        self._index: dict[Hashable, int] = {}
        self._sum = np.zeros((0, 0))
        self._count = np.zeros((0, 0))
        self.full = False

    @property
    def names(self) -> list[Hashable]:
        """In the order in which they came, at most `LIMIT`."""
        return list(self._index)

    def add(
        self,
        names: Sequence[Sequence[Hashable]],
        relations: Float[np.ndarray, "steps tasks tasks"],
    ) -> None:
        """Some batches of as many tasks; a task's relation to itself says nothing and is left out.

        Args:
            names: For each step, one a task; those of one family share theirs.
            relations: M of each step.
        """
        for name in chain.from_iterable(names):
            if name not in self._index:
                if len(self._index) >= LIMIT:
                    self.full = True
                    continue
                self._index[name] = len(self._index)
        self._grow()
        # Those that found no room get a row of their own, which is cut off again.
        count, none = len(self._index) + 1, len(self._index)
        which = np.array([[self._index.get(name, none) for name in step] for step in names])
        pairs = which[:, :, None] * count + which[:, None, :]
        keep = np.isfinite(relations) & ~np.eye(which.shape[1], dtype=bool)
        for total, weights in ((self._sum, relations[keep]), (self._count, None)):
            found = np.bincount(pairs[keep], weights, count * count).reshape(count, count)
            total += found[:none, :none]

    def mean(self) -> Float[np.ndarray, "names names"]:
        """The mean relation of each pair; NaN for a pair that was never seen together."""
        return np.divide(
            self._sum, self._count, out=np.full_like(self._sum, np.nan), where=self._count > 0
        )

    def seen(self) -> Float[np.ndarray, "names names"]:
        """How often each pair was in one batch."""
        return self._count.copy()

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "names": self.names,
            "sum": torch.from_numpy(self._sum.copy()),
            "count": torch.from_numpy(self._count.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self._index = {name: i for i, name in enumerate(state["names"])}
        self._sum, self._count = state["sum"].numpy().copy(), state["count"].numpy().copy()

    def _grow(self) -> None:
        more = len(self._index) - len(self._sum)
        if more:
            self._sum = np.pad(self._sum, (0, more))
            self._count = np.pad(self._count, (0, more))
