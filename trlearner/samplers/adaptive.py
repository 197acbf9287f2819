"""A task sampler that learns which tasks help."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.checks import check_flag, check_function, check_whole
from trlearner.base.types import LossFn, State
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner, check_learner
from trlearner.samplers.check import check_ranges
from trlearner.samplers.look import convolves
from trlearner.samplers.looker import Looker
from trlearner.samplers.marked import Marked, Waiting, gradients_of, mark
from trlearner.samplers.network import Trainer
from trlearner.samplers.registry import check_scores, score_tasks
from trlearner.samplers.sampler import TaskSampler
from trlearner.samplers.scoreboard import Scoreboard
from trlearner.tasks.batch import TaskBatch, check_batch


class AdaptiveTaskSampler(TaskSampler):
    """Draws tasks by weights that a small network makes of their scores (arXiv 2307.08924).

    The network is trained by one-step look-ahead: it raises the weight of tasks whose meta-gradient lowered
    the loss on the tasks that came next, or on `held_out` ones. Three ways in:

    * ``AdaptiveTaskSampler(task_ids, T)`` draws from a finite set; it is a ``batch_sampler``.
    * ``AdaptiveTaskSampler(batch_size=T)``: ``reweight(candidates)`` keeps T of an endless stream's.
    * ``AdaptiveTaskSampler()``: ``weigh(learner, batch)`` are weights for the tasks' losses.

    Args:
        task_ids: Distinct names; ``None`` for an endless stream.
        batch_size: T, the tasks of a batch.
        scores: Names of scores; see `register_score`.
        warmup: For so many updates all weights are exactly equal, while the network learns already.
        floor: The share of draws that stays uniform.
        every: Scores and weights are refreshed at every so many updates.
        loss_fn: For one task; by default squares, or cross-entropy for labels.
        extractor: Makes the features that scores are of, e.g. ``model.features``; by default they are what
            the learner embeds, the inputs themselves for MAML.
        held_out: Tasks to judge by, or a function that returns such a batch; by default the next batch.
        share: Of a batch's tasks, for each look-ahead; by default all, or half where models convolve.
        importance: As `TaskSampler` has it.
        decay: How much evidence it takes to move weights away from uniform.
        lr: Of the network's optimizer.
        hidden: The network's width.
        engine: For look-aheads: ``"auto"``, ``"eager"``, ``"traced"`` or ``"compiled"``.
        batches: In an epoch; by default as many as there are tasks for.
        generator: Draws everything; by default one seeded like torch, apart from the global stream.

    Example:
        >>> import trlearner as tr
        >>> sampler = AdaptiveTaskSampler(range(8), batch_size=4, warmup=2, every=1)
        >>> learner, x = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=1), torch.rand(8, 5, 1)
        >>> for ids in sampler:
        ...     pair = x[ids], 2 * x[ids]
        ...     batch = tr.TaskBatch(support=pair, query=pair, ids=ids)
        ...     sampler.update(learner, batch)
        >>> sampler.weights.shape, len(sampler)
        (torch.Size([8]), 2)
    """

    def __init__(
        self,
        task_ids: Sequence[Hashable] | None = None,
        batch_size: int | None = None,
        *,
        scores: Sequence[str] = ("diversity", "entropy", "difficulty"),
        warmup: int = 100,
        floor: float = 0.1,
        every: int = 10,
        loss_fn: LossFn | None = None,
        extractor: nn.Module | None = None,
        held_out: TaskBatch | Callable[[], TaskBatch] | None = None,
        share: float | None = None,
        importance: bool = False,
        decay: float = 0.1,
        lr: float = 0.02,
        hidden: int = 4,
        engine: str = "auto",
        batches: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            task_ids,
            batch_size,
            warmup=warmup,
            floor=floor,
            importance=importance,
            batches=batches,
            generator=generator,
            loss_fn=loss_fn,
        )
        check_scores(scores)
        check_ranges(every, share, decay, lr)
        check_whole("hidden", hidden)
        if not isinstance(held_out, TaskBatch):
            check_function("held_out", held_out, "() -> TaskBatch, or such a batch", optional=True)
        self.scores, self.every, self.share = tuple(scores), every, share
        self.held_out = held_out
        self._looker = Looker(engine, None if extractor is None else Extractor(extractor))
        self._trainer = Trainer(len(self.scores), hidden, lr, decay, self.generator)
        self._board = Scoreboard(len(self._place), len(self.scores))
        self._learner: Learner | None = None
        self._marked: Marked | None = None
        self._waiting: Waiting | None = None
        self._weighed: tuple[TaskBatch, Tensor] | None = None

    def update(self, learner: Learner, batch: TaskBatch, *, reuse: bool = False) -> None:
        """Tells the sampler of a meta-step on `batch`; call it after backward, before the optimizer steps.

        At every `every`-th call the step before is looked at: which of its tasks lowered the loss on this
        batch? That costs about a meta-step, and another one unless `reuse`.

        Args:
            learner: What took the step.
            batch: With `ids` where the tasks are a finite set.
            reuse: ``p.grad`` holds this batch's meta-gradient: it need not be computed again.

        Raises:
            ValueError: The batch's ids are unknown, or there is no gradient to reuse.
        """
        check_learner(learner)
        check_batch(batch)
        check_flag("reuse", reuse)
        self.settle()
        if self._marked is not None:
            reuses = reuse and self.held_out is None
            direction = gradients_of(learner) if reuses else self._fresh(learner, batch)
            self._learn(learner, self._marked, direction)
        self._took(learner, batch)

    def watch(self, learner: Learner, batch: TaskBatch, state: State) -> None:
        """Like ``update(reuse=True)``, but called before the backward pass, whose gradient it notes."""
        self.settle()
        if self._marked is not None and self.held_out is not None:
            self._learn(learner, self._marked, self._fresh(learner, batch))
        elif self._marked is not None:
            self._waiting = Waiting(self._marked, learner, state)
        self._took(learner, batch)

    def settle(self) -> None:
        """Finishes a look-ahead whose gradient has come in."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        waiting.remove()
        if waiting.direction is not None:
            self._learn(waiting.learner, waiting.marked, waiting.direction)

    def logits(self) -> Tensor:
        """Of every task of the finite set, by its scores when it was last looked at."""
        self.settle()
        return self._trainer.logits(self._board.table)

    def logits_of(self, batch: TaskBatch, learner: Learner | None) -> Tensor:
        """Of other tasks, by their scores as the learner stands."""
        self.settle()
        learner = learner or self._learner
        if learner is None:
            return self.unscored(batch)
        scores = score_tasks(self.scores, self._looker.evidence(learner, batch, self.loss_fn))
        return self._trainer.logits(self._board.standardize(scores))

    def weigh(self, learner: Learner, batch: TaskBatch) -> Tensor:
        """As `TaskSampler.weigh`; a sampler that only weighs scores the tasks at every call."""
        found = super().weigh(learner, batch)
        if self.batch_size is None:
            self._weighed = batch, found
        return found

    # ---- one look-ahead ------------------------------------------------------------------------

    def _fresh(self, learner: Learner, batch: TaskBatch) -> dict[str, Tensor]:
        held_out = self.held_out
        if held_out is not None:
            batch = held_out if isinstance(held_out, TaskBatch) else held_out()
        return self._looker.gradient(learner, batch, self.loss_fn)

    def _took(self, learner: Learner, batch: TaskBatch) -> None:
        """Counts a step, and marks it where the next one is to judge it."""
        self._arrived(batch)
        self._learner, self._marked = learner, None
        if (self.updates + 1) % self.every == 0:
            share = self.share or (0.5 if convolves(learner) else 1.0)
            weights = torch.full((len(batch),), 1 / len(batch))
            if self._weighed is not None and self._weighed[0] is batch:
                weights = self._weighed[1]
            self._marked = mark(learner, batch, weights, share, self.generator)
        self._weighed = None

    def _learn(self, learner: Learner, marked: Marked, direction: dict[str, Tensor]) -> None:
        marked = marked.to(
            next(iter(direction.values())).device
        )  # a loaded state may lie elsewhere
        found = self._looker.look(learner, marked, direction, self.loss_fn)
        places = None if self.task_ids is None else self.places(marked.batch)
        scores = self._board.note(score_tasks(self.scores, found.evidence), places)
        self._trainer.learn(scores, found.effects.cpu(), marked.weights)
        self._weights = None

    # ---- looking at it, and going on -----------------------------------------------------------

    def summary(self) -> dict[str, Tensor]:
        """For TensorBoard: numbers are scalars, vectors are distributions over tasks.

        `trust` says how far the network is believed: weights are uniform at 0.
        """
        self.settle()
        trust = torch.tensor(self._trainer.trust)
        return super().summary() | {"trust": trust} | self._board.summary(self.scores)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on, a step that waits to be judged included."""
        return {
            **super().state_dict(),
            "scores": self.scores,
            "trainer": self._trainer.state_dict(),
            "board": self._board.state_dict(),
            "marked": None if self._marked is None else self._marked.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken.

        Raises:
            ValueError: The state is of a sampler of other tasks or scores.
        """
        if state["scores"] != self.scores:
            raise ValueError(
                f"the state must be of a sampler of the same scores {self.scores}, got {state['scores']}. "
                "Build the sampler as it was built before."
            )
        super().load_state_dict(state)
        self._trainer.load_state_dict(state["trainer"])
        self._board.load_state_dict(state["board"])
        self._waiting, self._weighed = None, None
        self._marked = None if state["marked"] is None else Marked.from_dict(state["marked"])

    def __getstate__(self) -> dict[str, Any]:
        """A copy waits for no backward pass."""
        return {**self.__dict__, "_waiting": None}
