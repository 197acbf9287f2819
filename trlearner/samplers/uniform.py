"""The baseline: every task as often as any other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from trlearner.learners.protocol import Learner
from trlearner.samplers.sampler import TaskSampler
from trlearner.tasks.batch import TaskBatch


class UniformTaskSampler(TaskSampler):
    """Draws tasks uniformly, behind the interface of `AdaptiveTaskSampler`.

    Args:
        task_ids: Of a finite set of tasks; ``None`` for an endless stream.
        batch_size: Tasks a batch.
        batches: In an epoch.
        generator: As in `AdaptiveTaskSampler`.

    Example:
        >>> sampler = UniformTaskSampler("abcdef", 2, generator=torch.Generator().manual_seed(0))
        >>> [len(batch) for batch in sampler]
        [2, 2, 2]
    """

    def __init__(
        self,
        task_ids: Sequence[Hashable] | None = None,
        batch_size: int | None = None,
        *,
        batches: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(task_ids, batch_size, batches=batches, generator=generator)

    def _observe(self, learner: Learner, batch: TaskBatch, reuse: bool) -> None:
        pass

    def _score(self, learner: Learner, batch: TaskBatch) -> Tensor:
        return torch.zeros(len(batch), 0)

    def _rate(self, scores: Tensor) -> Tensor:
        return torch.zeros(len(scores))
