"""The adapted models of a batch of tasks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from trlearner.engines.blame import blaming
from trlearner.rows import number
from trlearner.samples import Samples, check_mask
from trlearner.seam import Engine, TaskLearner
from trlearner.types import Fast, State


@dataclass(frozen=True, eq=False)
class Adapted:
    """One adapted model per task; call it for predictions that are differentiable in the learner.

    Attributes:
        fast: What adaptation made of each task, ``[tasks, ...]`` by name.
    """

    learner: TaskLearner
    state: State
    fast: Fast
    runner: Engine

    @property
    def engine(self) -> str:
        """The name of the engine that ran."""
        return self.runner.name

    def __len__(self) -> int:
        return number(self.fast)

    def __call__(self, x: Tensor | Samples, mask: Tensor | None = None) -> Tensor:
        """Every model on its own task's inputs ``[tasks, queries, ...]``.

        Args:
            x: Inputs, or `Samples`, whose mask counts.
            mask: ``[tasks, queries]``, true where a query is real.

        Returns:
            Predictions ``[tasks, queries, *outputs]``.
        """
        x, mask = self._checked(x, mask)
        with self._blaming(x):
            features = self.runner.embed(self.learner, self.state, x, mask)
            return self.runner.predict(self.learner, self.state, self.fast, features, mask)

    def cross(self, x: Tensor | Samples, mask: Tensor | None = None) -> Tensor:
        """Every model on every task's inputs ``[tasks, queries, ...]``.

        Args:
            x: As for a call.
            mask: As for a call.

        Returns:
            Predictions ``[models, tasks, queries, *outputs]``.
        """
        x, mask = self._checked(x, mask)
        with self._blaming(x):
            features = self.runner.embed(self.learner, self.state, x, mask)
            return self.runner.cross(self.learner, self.state, self.fast, features, mask, None)

    def _blaming(self, x: Tensor) -> AbstractContextManager[None]:
        return blaming(self.learner, None, {"batch.query": Samples.unchecked(x, x, None, None)})

    def _checked(self, x: Tensor | Samples, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if isinstance(x, Samples):
            mask, x = x.mask, x.x
        if not isinstance(x, torch.Tensor) or x.ndim < 2 or len(x) != len(self):
            got = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(
                f"x must be [tasks, queries, ...] with tasks = {len(self)}, got {got}. "
                "Each adapted model belongs to one task of the batch that it was adapted on."
            )
        if mask is not None:
            check_mask(mask, x)
        return x, mask

    def __repr__(self) -> str:
        return f"Adapted(tasks={len(self)}, engine={self.engine!r})"
