"""What all task samplers share: weights, draws in proportion to them, and going on after a stop."""

from __future__ import annotations

import abc
import copy
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from trlearner.base.checks import (
    check_flag,
    check_generator,
    check_loss_fn,
    check_number,
    check_whole,
)
from trlearner.base.types import LossFn
from trlearner.learners.protocol import Learner, check_learner
from trlearner.samplers.check import check_batch_size, check_tasks
from trlearner.samplers.draw import floored, systematic
from trlearner.samplers.epoch import Epoch
from trlearner.samplers.scoreboard import Scoreboard
from trlearner.tasks.batch import TaskBatch, check_batch


class TaskSampler(Sampler[list[Hashable]], abc.ABC):
    """Draws batches of distinct tasks in proportion to weights, which a subclass makes of their scores.

    Iterating yields one epoch of lists of task ids, for ``DataLoader(dataset, batch_sampler=sampler)``.

    Args:
        task_ids: Of a finite set of tasks; ``None`` for an endless stream.
        batch_size: T, tasks a batch; ``None`` where the sampler does not choose tasks at all.
        scores: How many scores a task has.
        warmup: For so many updates all weights are exactly equal.
        floor: The share of draws that stays uniform, so that no task is out of reach.
        importance: Weigh each task's loss by 1 / (N p_i), so that the meta-gradient stays that of uniform
            draws on average.
        batches: In an epoch; by default as many as there are tasks for.
        generator: Draws everything; by default one seeded like torch, apart from the global stream.
        loss_fn: For one task; ``None`` goes by the targets, and becomes the loss of a `TRLearner`.
    """

    def __init__(
        self,
        task_ids: Sequence[Hashable] | None,
        batch_size: int | None,
        *,
        scores: int = 0,
        warmup: int = 0,
        floor: float = 1.0,
        importance: bool = False,
        batches: int | None = None,
        generator: torch.Generator | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        check_whole("warmup", warmup, least=0)
        check_number("floor", floor, above=0, most=1)
        check_whole("batches", batches, optional=True)
        check_tasks(task_ids, batch_size)
        check_flag("importance", importance)
        check_loss_fn(loss_fn, optional=True)
        check_generator(generator)
        self.task_ids = None if task_ids is None else tuple(task_ids)
        self.batch_size, self.warmup, self.floor = batch_size, warmup, floor
        self.importance, self.batches = importance, batches
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed())
        self.loss_fn: LossFn | None = loss_fn
        self.updates = 0
        self._place = {name: i for i, name in enumerate(self.task_ids or ())}
        self._epoch = Epoch(len(self._place), batch_size or 0, self.generator)
        self._board = Scoreboard(len(self._place), scores)
        self._learner: Learner | None = None
        self._weights: Tensor | None = None
        # The batch that was chosen or weighed last, and N p_i of its tasks.
        self._relative: tuple[TaskBatch, Tensor] | None = None

    # ---- what a subclass says ------------------------------------------------------------------

    @abc.abstractmethod
    def _observe(self, learner: Learner, batch: TaskBatch, reuse: bool) -> None:
        """Learns from an update, before it is counted; arguments as in `update`."""

    @abc.abstractmethod
    def _score(self, learner: Learner, batch: TaskBatch) -> Tensor:
        """Scores of a batch's tasks as the learner stands, ``[tasks, scores]``."""

    @abc.abstractmethod
    def _rate(self, scores: Tensor) -> Tensor:
        """Logits ``[tasks]`` of standardized scores ``[tasks, scores]``."""

    # ---- updates -------------------------------------------------------------------------------

    def update(self, learner: Learner, batch: TaskBatch, *, reuse: bool = False) -> None:
        """Reports a meta-step on `batch`; call it once a step, before the optimizer steps.

        Args:
            learner: What takes the step.
            batch: With `ids` where the tasks are a finite set.
            reuse: ``p.grad`` holds this batch's meta-gradient, after backward: it is not computed again.

        Raises:
            ValueError: The batch's ids are unknown, or there is no gradient to reuse.
        """
        check_learner(learner)
        check_batch(batch)
        check_flag("reuse", reuse)
        places = None if self.task_ids is None else self.places(batch)
        self._observe(learner, batch, reuse)
        if places is not None:
            self._epoch.reported(places)
        self._learner = learner
        self.updates += 1
        if self.updates == self.warmup:
            self._weights = None

    def _note(self, scores: Tensor, batch: TaskBatch) -> Tensor:
        """Takes in scores of a batch's tasks, and returns them standardized."""
        self._weights = None
        return self._board.note(scores, None if self.task_ids is None else self.places(batch))

    def logits(self) -> Tensor:
        """Of every task of the finite set ``[tasks]``, by its scores when it was last looked at."""
        return self._rate(self._board.table)

    def logits_of(self, batch: TaskBatch, learner: Learner | None = None) -> Tensor:
        """Of other tasks ``[tasks]``, by their scores as the learner, or the one of the last update, stands.

        Raises:
            ValueError: There have been updates, so that there is a learner, which a state does not hold.
        """
        learner = learner or self._learner
        if learner is not None:
            return self._rate(self._board.standardize(self._score(learner, batch)))
        if self.updates:
            raise ValueError(
                "learner must be given to the first reweight after load_state_dict, got None. Call "
                "reweight(candidates, learner)."
            )
        return torch.zeros(len(batch))

    # ---- drawing -------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """The probability p_i with which each of `task_ids` is drawn, ``[tasks]``; at most 1 / T."""
        if self.task_ids is None:
            raise ValueError(
                "weights belong to a finite set of tasks, got task_ids=None. Use weigh(learner, batch) "
                "for the weights of a batch."
            )
        if self._weights is None:
            logits = torch.zeros(len(self.task_ids)) if self._uniform else self.logits()
            self._weights = floored(logits.double(), self.floor, 1 / self._epoch.batch_size)
        return self._weights

    @property
    def _uniform(self) -> bool:
        """Whether all weights are equal, whatever scores say."""
        return self.updates < self.warmup or self.floor == 1

    def __iter__(self) -> Iterator[list[Hashable]]:
        if self.task_ids is None:
            raise TypeError(
                "only a sampler of a finite set can be iterated, got task_ids=None. Draw candidates "
                "yourself and let reweight(candidates) choose among them."
            )
        for positions in self._epoch.batches(len(self), lambda: self.weights):
            yield [self.task_ids[i] for i in positions]

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.task_ids is None:
            raise TypeError("an endless stream has no length: task_ids is None.")
        return self.batches or -(-len(self.task_ids) // self._epoch.batch_size)

    def reweight(self, candidates: TaskBatch, learner: Learner | None = None) -> TaskBatch:
        """Keeps `batch_size` of many candidates, in proportion to their weights.

        Args:
            candidates: C tasks, C at least `batch_size`.
            learner: Scores them; by default the one of the last update.
        """
        check_batch(candidates, "candidates")
        if learner is not None:
            check_learner(learner)
        size = check_batch_size(self.batch_size, len(candidates), "candidates")
        plain = self._uniform or size == len(candidates)
        logits = torch.zeros(len(candidates)) if plain else self.logits_of(candidates, learner)
        p = floored(logits.double(), self.floor, 1 / size)
        chosen = systematic(p, size, self.generator).cpu()
        batch = candidates[chosen]
        self._relative = batch, p[chosen] * len(candidates)
        return batch

    # ---- weighing ------------------------------------------------------------------------------

    @property
    def weighs(self) -> bool:
        """Whether a step on what was drawn is more than the mean of the tasks' losses."""
        return self.batch_size is None or self.importance

    def weigh(self, learner: Learner, batch: TaskBatch) -> Tensor:
        """What to multiply the batch's task losses by before they are summed, ``[tasks]``.

        For a sampler that draws, ``1 / T``, or with `importance` ``1 / (T N p_i)``; for one that only
        weighs, ``floor / T + (1 - floor) softmax``.
        """
        check_learner(learner)
        check_batch(batch)
        tasks = len(batch)
        found = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
        if self.batch_size is None:
            if not self._uniform:
                found = floored(self.logits_of(batch, learner).double(), self.floor)
            self._relative = batch, found * tasks
        elif self.importance:
            found = found / self._drawn(batch)
        x = batch.query.x
        return found.to(x.device, x.dtype if x.is_floating_point() else torch.get_default_dtype())

    def _drawn(self, batch: TaskBatch) -> Tensor:
        """N p_i of a batch's tasks, when they were drawn."""
        if self._relative is not None and self._relative[0] is batch:
            return self._relative[1]
        if self.task_ids is None:
            raise ValueError(
                "importance weights need the batch as reweight(candidates) returned it, got another. "
                "Move candidates to their device before they are chosen from."
            )
        places = self.places(batch)
        then = self._epoch.chances(places)
        p = self.weights[places] if then is None else torch.tensor(then, dtype=torch.float64)
        return p * len(self.task_ids)

    def places(self, batch: TaskBatch) -> list[int]:
        """Where a batch's tasks stand in `task_ids`.

        Raises:
            ValueError: It has no ids, or others.
        """
        if batch.ids is None:
            raise ValueError(
                "the batch must say which tasks it holds, got ids=None. Build it with "
                "TaskBatch(..., ids=...), the ids that the sampler yielded."
            )
        unknown = [name for name in batch.ids if name not in self._place]
        if unknown:
            raise ValueError(
                f"the batch's ids must be among task_ids, got {unknown[:3]}. Pass on the ids that the "
                "sampler yielded."
            )
        return [self._place[name] for name in batch.ids]

    # ---- looking at it, and going on -----------------------------------------------------------

    def summary(self) -> dict[str, Tensor]:
        """For TensorBoard: numbers are scalars, vectors are distributions over tasks."""
        if self.task_ids is None:
            return {}
        p = self.weights
        entropy = torch.special.entr(p).sum() / max(torch.tensor(float(len(p))).log().item(), 1e-9)
        return {"weights": p.clone(), "weight entropy": entropy, "draws": self._epoch.draws.clone()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on.

        What loaders have fetched ahead but no update has reported is drawn again after a restart.
        """
        return {
            "task_ids": self.task_ids,
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "epoch": self._epoch.state_dict(reports=self.updates > 0),
            "board": copy.deepcopy(dict(self._board.state_dict())),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken: the next iteration yields what would have come next.

        Raises:
            ValueError: The state is of a sampler of other tasks.
        """
        if state["task_ids"] != self.task_ids:
            raise ValueError(
                f"the state must be of a sampler of the same task_ids, got one of "
                f"{len(state['task_ids'] or ())} tasks for {len(self.task_ids or ())}. Build the "
                "sampler as it was built before."
            )
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]
        self._epoch.load_state_dict(state["epoch"])
        self._board.load_state_dict(state["board"])
        self._weights, self._relative = None, None
