"""Online hard-task mining: the higher a task's loss, the more often it comes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from trlearner.base.checks import check_number, check_whole
from trlearner.base.types import LossFn
from trlearner.learners.protocol import Learner
from trlearner.samplers.lookahead import looking, task_losses
from trlearner.samplers.sampler import TaskSampler
from trlearner.tasks.batch import TaskBatch


class HardTaskSampler(TaskSampler):
    """Draws tasks in proportion to ``exp(temperature^-1 * standardized loss after adaptation)``.

    It cannot tell a task that is hard from one that is hopeless; `AdaptiveTaskSampler` can.

    Args:
        task_ids: Of a finite set of tasks; ``None`` for an endless stream.
        batch_size: Tasks a batch.
        temperature: The lower, the harder.
        warmup: As in `AdaptiveTaskSampler`.
        floor: As in `AdaptiveTaskSampler`.
        every: Losses are computed at every so many updates.
        loss_fn: As in `AdaptiveTaskSampler`.
        batches: In an epoch.
        generator: As in `AdaptiveTaskSampler`.

    Example:
        >>> import trlearner as tr
        >>> sampler = HardTaskSampler(range(4), 4, warmup=0, every=1)
        >>> learner, x = tr.MAML(torch.nn.Linear(1, 1), lr=0.1, steps=1), torch.rand(4, 5, 1)
        >>> slopes = torch.tensor([1.0, 1.0, 1.0, 9.0])[:, None, None]
        >>> y = slopes * x
        >>> sampler.update(learner, tr.TaskBatch(support=(x, y), query=(x, y), ids=range(4)))
        >>> int(sampler.logits().argmax())
        3
    """

    def __init__(
        self,
        task_ids: Sequence[Hashable] | None = None,
        batch_size: int | None = None,
        *,
        temperature: float = 1.0,
        warmup: int = 100,
        floor: float = 0.1,
        every: int = 10,
        loss_fn: LossFn | None = None,
        batches: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            task_ids,
            batch_size,
            scores=1,
            warmup=warmup,
            floor=floor,
            batches=batches,
            generator=generator,
            loss_fn=loss_fn,
        )
        check_whole("every", every)
        check_number("temperature", temperature, above=0)
        self.temperature, self.every = temperature, every

    def _observe(self, learner: Learner, batch: TaskBatch, reuse: bool) -> None:
        if (self.updates + 1) % self.every == 0:
            self._note(self._score(learner, batch), batch)

    def _score(self, learner: Learner, batch: TaskBatch) -> Tensor:
        with looking(learner, batch, self.loss_fn) as (engine, loss_fn), torch.no_grad():
            return task_losses(engine, learner, learner.state(), batch, loss_fn)[:, None]

    def _rate(self, scores: Tensor) -> Tensor:
        return scores[:, 0] / self.temperature
