"""What all steps so far have seen of each pair of known tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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

    def add(self, names: Sequence[Hashable], relations: Float[np.ndarray, "tasks tasks"]) -> None:
        """One batch of tasks; a task's relation to itself says nothing and is left out.

        Args:
            names: One a task; those of one family share theirs.
            relations: M.
        """
        for name in names:
            if name not in self._index:
                if len(self._index) >= LIMIT:
                    self.full = True
                    continue
                self._index[name] = len(self._index)
        self._grow()
        known = [i for i, name in enumerate(names) if name in self._index]
        which = np.array([self._index[names[i]] for i in known], dtype=int)
        m = relations[np.ix_(known, known)].astype(float)
        counts = np.isfinite(m) & ~np.eye(len(known), dtype=bool)
        pairs = which[:, None] * len(self._index) + which
        size = self._sum.size
        self._sum += np.bincount(pairs[counts], m[counts], size).reshape(self._sum.shape)
        self._count += np.bincount(pairs[counts], minlength=size).reshape(self._sum.shape)

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
