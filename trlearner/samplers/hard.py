"""Online hard-task mining: the higher a task's loss, the more often it comes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from trlearner.base.checks import check_number, check_whole
from trlearner.base.functional import random_state_kept
from trlearner.base.types import LossFn, State
from trlearner.learners.protocol import Learner
from trlearner.samplers.look import eager_engine
from trlearner.samplers.lookahead import task_losses
from trlearner.samplers.loss import loss_for
from trlearner.samplers.sampler import TaskSampler
from trlearner.samplers.scoreboard import Scoreboard
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
            warmup=warmup,
            floor=floor,
            importance=False,
            batches=batches,
            generator=generator,
            loss_fn=loss_fn,
        )
        check_whole("every", every)
        check_number("temperature", temperature, above=0)
        self.temperature, self.every = temperature, every
        self._board = Scoreboard(len(self._place), 1)
        self._learner: Learner | None = None

    def update(self, learner: Learner, batch: TaskBatch, *, reuse: bool = False) -> None:
        """Every so often, takes the losses of these tasks."""
        self._learner = learner
        self._arrived(batch)
        if self.updates % self.every == 0:
            losses = self._losses(batch, learner)[:, None]
            self._board.note(losses, None if self.task_ids is None else self.places(batch))
            self._weights = None

    def watch(self, learner: Learner, batch: TaskBatch, state: State) -> None:
        """As `update`."""
        self.update(learner, batch)

    def settle(self) -> None:
        """Nothing waits."""

    def logits(self) -> Tensor:
        """By the losses when a task was last looked at; 0 for one that never was."""
        return self._board.table[:, 0] / self.temperature

    def logits_of(self, batch: TaskBatch, learner: Learner | None) -> Tensor:
        """By the losses as they are, which takes an adaptation."""
        learner = learner or self._learner
        if learner is None:
            return self.unscored(batch)
        losses = self._losses(batch, learner)[:, None]
        return self._board.standardize(losses)[:, 0] / self.temperature

    def _losses(self, batch: TaskBatch, learner: Learner) -> Tensor:
        loss_fn = loss_for(self.loss_fn, batch)
        engine = eager_engine(learner.engine_for(batch.support, loss_fn, batch.query))
        with torch.no_grad(), random_state_kept(batch.query.x):
            state = learner.state()
            return task_losses(engine, learner, state, batch, loss_fn, learner.steps)

    def state_dict(self) -> dict[str, Any]:
        """With the losses."""
        return {
            **super().state_dict(),
            "board": self._board.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """With the losses."""
        super().load_state_dict(state)
        self._board.load_state_dict(state["board"])
