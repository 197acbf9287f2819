"""A task sampler that learns which tasks help."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from trlearner.base.checks import check_function, check_number, check_whole
from trlearner.base.types import LossFn, State
from trlearner.engines.choose import ENGINES
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.samplers.evidence import gather
from trlearner.samplers.lookahead import looking, mean_gradient, products, task_losses
from trlearner.samplers.network import Trainer
from trlearner.samplers.sampler import TaskSampler
from trlearner.samplers.scores import check_scores, score_tasks
from trlearner.samplers.step import Gradient, Step, gradient_of
from trlearner.tasks.batch import TaskBatch


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
        batches: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_scores(scores)
        super().__init__(
            task_ids,
            batch_size,
            scores=len(scores),
            warmup=warmup,
            floor=floor,
            importance=importance,
            batches=batches,
            generator=generator,
            loss_fn=loss_fn,
        )
        check_whole("every", every)
        check_whole("hidden", hidden)
        if share is not None:
            check_number("share", share, above=0, most=1)
        check_number("decay", decay, above=0)
        check_number("lr", lr, above=0)
        if not isinstance(held_out, TaskBatch):
            check_function("held_out", held_out, "() -> TaskBatch, or such a batch", optional=True)
        self.scores, self.every, self.share = tuple(scores), every, share
        self.held_out = held_out
        self._extractor = None if extractor is None else Extractor(extractor)
        self._trainer = Trainer(len(self.scores), hidden, lr, decay, self.generator)
        self._step: Step | None = None  # that the next update judges

    def _observe(self, learner: Learner, batch: TaskBatch, reuse: bool) -> None:
        """At every `every`-th update, judges the step before: which of its tasks lowered the loss?

        That costs about a meta-step, and another one where no gradient is reused.
        """
        if self._step is not None:
            reuses = reuse and self.held_out is None
            gradient = gradient_of(learner) if reuses else self._gradient(learner, batch)
            self._judge(learner, self._step, gradient)
        self._step = None
        if (self.updates + 2) % self.every == 0:  # the next update is to judge this one
            self._step = self._remembered(learner, batch)

    def _remembered(self, learner: Learner, batch: TaskBatch) -> Step:
        """A step on a batch, or on a random share of its tasks, two at the least."""
        share = self.share or (0.5 if _convolves(learner) else 1.0)
        weights = torch.ones(len(batch))
        if self.batch_size is None and self._relative is not None and self._relative[0] is batch:
            weights = self._relative[1]
        count = min(len(batch), max(2, round(share * len(batch))))
        if count < len(batch):
            g = self.generator
            order = torch.randperm(len(batch), generator=g, device=g.device)
            chosen = order[:count].sort().values.cpu()
            batch, weights = batch[chosen], weights[chosen]
        state = {name: tensor.detach().clone() for name, tensor in learner.state().items()}
        return Step(state, batch, weights / weights.sum())

    def _gradient(self, learner: Learner, batch: TaskBatch) -> Gradient:
        """Of the mean loss on held-out tasks, or on the batch without them, as the learner stands."""
        if self.held_out is not None:
            batch = self.held_out if isinstance(self.held_out, TaskBatch) else self.held_out()
        with looking(learner, batch, self.loss_fn) as (engine, loss_fn), torch.enable_grad():
            return mean_gradient(
                lambda at: task_losses(engine, learner, at, batch, loss_fn), learner.state()
            )

    def _judge(self, learner: Learner, step: Step, direction: Gradient) -> None:
        """One look-ahead over a step along the gradient that came after it."""
        step = step.to(next(iter(direction.values())).device)  # a loaded state may lie elsewhere
        scores = self._note(self._score(learner, step.batch, step.state), step.batch)
        with looking(learner, step.batch, self.loss_fn) as (engine, loss_fn):
            if _convolves(learner) and not step.batch.query.x.is_cuda:
                engine = ENGINES["loop"]  # cheaper there than a double backward pass over all tasks
            effects = -products(
                lambda at: task_losses(engine, learner, at, step.batch, loss_fn),
                step.state,
                direction,
                engine.together,
            )
        self._trainer.learn(scores, effects.cpu(), step.weights)

    def _score(self, learner: Learner, batch: TaskBatch, state: State | None = None) -> Tensor:
        """As the learner stands, or stood at another state."""
        state = learner.state() if state is None else state
        with looking(learner, batch, self.loss_fn) as (engine, loss_fn):
            evidence = gather(engine, learner, state, batch.support, loss_fn, self._extractor)
        return score_tasks(self.scores, evidence)

    def _rate(self, scores: Tensor) -> Tensor:
        return self._trainer.logits(scores)

    # ---- looking at it, and going on -----------------------------------------------------------

    def summary(self) -> dict[str, Tensor]:
        """For TensorBoard: numbers are scalars, vectors are distributions over tasks.

        `trust` says how far the network is believed: weights are uniform at 0.
        """
        trust = torch.tensor(self._trainer.trust)
        return super().summary() | {"trust": trust} | self._board.summary(self.scores)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on, a step that waits to be judged included."""
        return {
            **super().state_dict(),
            "scores": self.scores,
            "trainer": self._trainer.state_dict(),
            "step": None if self._step is None else self._step.to_dict(),
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
        self._step = None if state["step"] is None else Step.from_dict(state["step"])


def _convolves(learner: Learner) -> bool:
    """Whether arithmetic outweighs the number of operations."""
    return any(isinstance(module, _ConvNd) for module in learner.modules())
