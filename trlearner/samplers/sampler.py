"""What all task samplers share: drawing, what is on its way, and going on after a stop."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from trlearner.base.checks import check_flag, check_generator, check_loss_fn
from trlearner.base.types import LossFn, State
from trlearner.learners.protocol import Learner, check_learner
from trlearner.samplers.check import check_batch, check_settings, check_tasks
from trlearner.samplers.draw import floored, systematic
from trlearner.samplers.itinerary import Itinerary
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.batch import check_batch as check_is_batch


class TaskSampler(Sampler[list[Hashable]], abc.ABC):
    """Draws batches of distinct tasks in proportion to weights, which a subclass says.

    Iterating yields one epoch of lists of task ids, for ``DataLoader(dataset, batch_sampler=sampler)``.

    Args:
        task_ids: Of a finite set of tasks; ``None`` for an endless stream.
        batch_size: T, tasks a batch; ``None`` where the sampler does not choose tasks at all.
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
        warmup: int,
        floor: float,
        importance: bool,
        batches: int | None,
        generator: torch.Generator | None,
        loss_fn: LossFn | None = None,
    ) -> None:
        check_settings(warmup, floor, batches)
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
        self._way = Itinerary(len(self._place), batch_size or 0, self.generator)
        self._weights: Tensor | None = None
        self._kept: tuple[TaskBatch, Tensor] | None = None

    # ---- what a subclass says ------------------------------------------------------------------

    @abc.abstractmethod
    def update(self, learner: Learner, batch: TaskBatch, *, reuse: bool = False) -> None:
        """Tells the sampler of a meta-step that was taken on `batch`; call it once a step.

        Args:
            learner: As the step left it, or found it.
            batch: With `ids` where the tasks are a finite set.
            reuse: ``p.grad`` of the learner's parameters holds this batch's meta-gradient and the
                optimizer has not stepped yet: it need not be computed again.
        """

    @abc.abstractmethod
    def watch(self, learner: Learner, batch: TaskBatch, state: State) -> None:
        """Like `update`, but called before the step's backward pass; `TRLearner` does so.

        Args:
            learner: What takes the step.
            batch: As in `update`.
            state: The learner's parameters and buffers as the step read them: views, so that hooks on them
                see the gradient of this step only and disappear with its graph.
        """

    @abc.abstractmethod
    def logits(self) -> Tensor:
        """Of every task of the finite set: ``[tasks]``."""

    @abc.abstractmethod
    def logits_of(self, batch: TaskBatch, learner: Learner | None) -> Tensor:
        """Of other tasks: ``[tasks]``."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Brings weights up to date with all that has been told, before they are used."""

    # ---- drawing -------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """The probability p_i with which each of `task_ids` is drawn, ``[tasks]``; at most 1 / T."""
        if self.task_ids is None or self.batch_size is None:
            raise ValueError(
                "weights belong to a finite set of tasks, got task_ids=None. Use weigh(learner, batch) "
                "for the weights of a batch."
            )
        self.settle()
        if self._weights is None:
            tasks = len(self.task_ids)
            self._weights = (
                torch.full((tasks,), 1 / tasks, dtype=torch.float64)
                if self.warming
                else floored(self.logits().double(), self.floor, 1 / self.batch_size)
            )
        return self._weights

    @property
    def warming(self) -> bool:
        """Whether all weights are equal still."""
        return self.updates < self.warmup

    def __iter__(self) -> Iterator[list[Hashable]]:
        if self.task_ids is None or self.batch_size is None:
            raise TypeError(
                "only a sampler of a finite set can be iterated, got task_ids=None. Draw candidates "
                "yourself and let reweight(candidates) choose among them."
            )
        for positions in self._way.epoch(len(self), lambda: self.weights):
            yield [self.task_ids[i] for i in positions]

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.task_ids is None or self.batch_size is None:
            raise TypeError("an endless stream has no length: task_ids is None.")
        return self.batches or -(-len(self.task_ids) // self.batch_size)

    def reweight(self, candidates: TaskBatch, learner: Learner | None = None) -> TaskBatch:
        """Keeps `batch_size` of many candidates, in proportion to their weights.

        Args:
            candidates: C tasks, C at least `batch_size`.
            learner: Scores them; by default the one of the last update.
        """
        check_is_batch(candidates, "candidates")
        if learner is not None:
            check_learner(learner)
        size = check_batch(self.batch_size, len(candidates))
        plain = self.warming or size == len(candidates)
        logits = torch.zeros(len(candidates)) if plain else self.logits_of(candidates, learner)
        p = floored(logits.double(), self.floor, 1 / size)
        chosen = systematic(p, size, self.generator).cpu()
        batch = candidates[chosen]
        self._kept = batch, p[chosen] * len(candidates)
        return batch

    def weigh(self, learner: Learner, batch: TaskBatch) -> Tensor:
        """What to multiply the batch's task losses by before they are summed, ``[tasks]``.

        For a sampler that draws, ``1 / T``, or with `importance` ``1 / (T N p_i)``; for one that only
        weighs, ``floor / T + (1 - floor) softmax``.
        """
        check_learner(learner)
        check_is_batch(batch)
        tasks, device = len(batch), batch.query.x.device
        found = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
        if self.batch_size is None and not self.warming:
            found = floored(self.logits_of(batch, learner).double(), self.floor)
        elif self.batch_size is not None and self.importance:
            found = found / self._relative(batch)
        dtype = batch.query.x.dtype if batch.query.x.is_floating_point() else None
        return found.to(device, dtype or torch.get_default_dtype())

    @property
    def weighs(self) -> bool:
        """Whether a step on what was drawn is more than the mean of the tasks' losses."""
        return self.batch_size is None or self.importance

    def _relative(self, batch: TaskBatch) -> Tensor:
        """N p_i of a batch's tasks, when they were drawn."""
        if self._kept is not None and self._kept[0] is batch:
            return self._kept[1]
        if self.task_ids is None:
            raise ValueError(
                "importance weights need the batch as reweight(candidates) returned it, got another. "
                "Move candidates to their device before they are chosen from."
            )
        places = self.places(batch)
        then = self._way.chances(places)
        p = self.weights[places] if then is None else torch.tensor(then, dtype=torch.float64)
        return p * len(self.task_ids)

    # ---- what is on its way, and going on ------------------------------------------------------

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

    def _arrived(self, batch: TaskBatch) -> None:
        """A batch, and whatever was drawn before it, is not on its way any more."""
        if self.task_ids is not None:
            self._way.arrived(self.places(batch))
        self.updates += 1
        if self.updates == self.warmup:
            self._weights = None

    def unscored(self, batch: TaskBatch) -> Tensor:
        """Logits of tasks that no learner scores: alike.

        Raises:
            ValueError: There have been updates, so that there is a learner, which a state does not hold.
        """
        if self.updates:
            raise ValueError(
                "learner must be given to the first reweight after load_state_dict, got None. Call "
                "reweight(candidates, learner)."
            )
        return torch.zeros(len(batch))

    def summary(self) -> dict[str, Tensor]:
        """For TensorBoard: numbers are scalars, vectors are distributions over tasks."""
        if self.task_ids is None or self.batch_size is None:
            return {}
        p = self.weights
        entropy = torch.special.entr(p).sum() / max(torch.tensor(float(len(p))).log().item(), 1e-9)
        return {"weights": p.clone(), "weight entropy": entropy, "draws": self._way.draws.clone()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on; a subclass adds its own.

        What loaders have fetched ahead but no update has confirmed is drawn again after a restart.
        """
        self.settle()
        return {
            "task_ids": self.task_ids,
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "way": self._way.state_dict(confirmed=self.updates > 0),
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
        self._way.load_state_dict(state["way"])
        self._weights, self._kept = None, None
