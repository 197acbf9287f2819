"""Adapted models: what engines return, and what everything else works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from trlearner.base.types import Fast, LossFn, State
from trlearner.engines.blame import blaming
from trlearner.engines.task_learner import GradientTaskLearner, TaskLearner
from trlearner.tasks.nested import Data, as_data, have_tasks, packed, raw, shown, unpacked
from trlearner.tasks.rows import Rows, number, part_of
from trlearner.tasks.samples import Samples, check_mask


class Embedded(NamedTuple):
    """Inputs of every task, once what all tasks compute alike has been computed."""

    features: Data  # [tasks, samples, ...]
    mask: Tensor | None  # [tasks, samples]


@dataclass(frozen=True)
class Engine:
    """One way to run many tasks: functions over ``[tasks, ...]`` tensors; `Adapted` calls them.

    Attributes:
        name: What `out.engine` says.
        embed: ``(learner, state, x, mask) -> features [tasks, samples, ...]``.
        adapt: ``(learner, state, features, support, loss_fn, steps) -> fast``, each entry with a
            leading axis of tasks; a graph is kept exactly where gradients are enabled.
        predict: ``(models, features, mask) -> [tasks, queries, ...]``.
        cross: ``(models, features, mask, chosen) -> [models, tasks, queries, ...]``.
            ``chosen [models, tasks]`` names the models to ask for each task; ``None`` asks all.
        loss: ``(loss_fn, predictions, y, mask) -> [tasks]``.
        together: All tasks run at once.
        graphs: A meta-step is traced into one graph, which knows its gradient.
    """

    name: str
    embed: Callable[[TaskLearner, State, Any, Tensor | None], Any]
    adapt: Callable[[TaskLearner, State, Any, Samples, LossFn, int], Fast]
    predict: Callable[[Adapted, Any, Tensor | None], Any]
    cross: Callable[[Adapted, Any, Tensor | None, Tensor | None], Any]
    loss: Callable[[LossFn, Any, Any, Tensor | None], Tensor]
    together: bool = False
    graphs: bool = False


@runtime_checkable
class Models(Protocol):
    """Adapted models, ours (`Adapted`) or those of a loop of the user's own (`CollectedModels`)."""

    @property
    def learner(self) -> TaskLearner | None:
        """Who adapted, if it was a learner of ours."""

    @property
    def state(self) -> State:
        """The learner's parameters and buffers, before adaptation."""

    @property
    def runner(self) -> Engine:
        """Runs the models."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice | Tensor) -> Models:
        """Some of the models."""

    def embed(self, samples: Samples) -> Embedded:
        """What the models take."""

    def cross(self, x: Embedded, *, models: Tensor | None = None) -> Tensor:
        """Every model, or those named, on every task: ``[models, tasks, queries, ...]``."""

    def losses(self, loss_fn: LossFn, predictions: Tensor, samples: Samples) -> Tensor:
        """Each task's loss ``[tasks]`` of predictions of its samples."""

    def moved(self) -> Tensor:
        """What adaptation changed of each task's parameters ``[tasks, coordinates]``."""

    def couples_samples(self) -> bool:
        """Whether a sample's prediction depends on the others of its batch."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """One adapted model per task; call it for predictions that are differentiable in the learner.

    Attributes:
        learner: Who adapted.
        state: The learner's parameters and buffers, before adaptation.
        fast: What adaptation made of each task, ``[tasks, ...]`` by name.
        runner: Runs the models.

    Example:
        >>> import trlearner as tr
        >>> learner, x = tr.MAML(torch.nn.Linear(1, 1), lr=0.1), torch.rand(3, 5, 1)
        >>> adapted = learner.adapt((x, 2 * x), torch.nn.functional.mse_loss)
        >>> adapted.predict(x).shape, adapted.cross(x).shape, adapted[:2].predict(x[:2]).shape
        (torch.Size([3, 5, 1]), torch.Size([3, 3, 5, 1]), torch.Size([2, 5, 1]))
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

    def __getitem__(self, part: slice | Tensor) -> Adapted:
        """Some of the models: a slice, or their positions ``[some]``."""
        return replace(self, fast=part_of(self.fast, part))

    def dense(self) -> Adapted:
        """The same models, each entry of `fast` as one tensor."""
        return replace(self, fast=dict(self.fast)) if isinstance(self.fast, Rows) else self

    def __call__(self, x: Any, mask: Tensor | None = None) -> Any:
        """As `predict`."""
        return self.predict(x, mask)

    def predict(self, x: Any, mask: Tensor | None = None) -> Any:
        """Every model on its own task's inputs ``[tasks, queries, ...]``.

        Args:
            x: Inputs; or `Samples`, whose mask counts; or what `embed` made of them.
            mask: ``[tasks, queries]``, true where a query is real.

        Returns:
            Predictions ``[tasks, queries, *outputs]``, in the structure that the model returns; where `x` is
            what `embed` made, in one tensor.
        """
        if isinstance(x, Embedded):
            found = self.runner.predict(self, x.features, x.mask)
            return found if isinstance(found, Tensor) else packed(found, 2)
        with self._checked(x, mask) as samples:
            features = embed(self.runner, self.learner, self.state, samples)
            return raw(self.runner.predict(self, features, samples.mask))

    def cross(
        self,
        x: Any,
        mask: Tensor | None = None,
        *,
        models: Tensor | None = None,
    ) -> Any:
        """Every model on every task's inputs ``[tasks, queries, ...]``.

        Args:
            x: As for `predict`.
            mask: As for `predict`.
            models: ``[models, tasks]``: which models to ask for each task; by default all of them.

        Returns:
            Predictions ``[models, tasks, queries, *outputs]``, as of `predict`.
        """
        if isinstance(x, Embedded):
            found = self.runner.cross(self, x.features, x.mask, models)
            return found if isinstance(found, Tensor) else packed(found, 3)
        with self._checked(x, mask) as samples:
            features = embed(self.runner, self.learner, self.state, samples)
            return raw(self.runner.cross(self, features, samples.mask, models))

    def embed(self, samples: Samples) -> Embedded:
        """What the models take, once what all tasks compute alike has been computed."""
        features = embed(self.runner, self.learner, self.state, samples)
        return Embedded(features, samples.mask)

    def losses(self, loss_fn: LossFn, predictions: Tensor, samples: Samples) -> Tensor:
        """Each task's loss ``[tasks]`` of predictions of its samples, over the real ones."""
        layout = self.learner.layout
        structured = predictions if layout is None else unpacked(predictions, layout, 2)
        return self.runner.loss(loss_fn, structured, samples.y, samples.mask)

    def moved(self) -> Tensor:
        """Everything that adapted, minus where it started: ``[tasks, coordinates]``.

        Raises:
            TypeError: The learner descends no gradient.
        """
        if not isinstance(self.learner, GradientTaskLearner):
            raise TypeError(
                f"{type(self.learner).__name__} descends no gradient, so its adaptation moves no parameters."
            )
        start = self.learner.start(self.state)
        moved = [self.fast[name] - value for name, value in start.items()]
        return torch.cat([m.reshape(len(m), -1) for m in moved], 1)

    def couples_samples(self) -> bool:
        """Whether a sample's prediction depends on the others of its batch."""
        return self.learner.couples_samples()

    @contextmanager
    def _checked(self, x: Any, mask: Tensor | None) -> Iterator[Samples]:
        if isinstance(x, Samples):
            mask, x = x.mask, x.x
        x = as_data(x)
        if not have_tasks(x, len(self)):
            raise ValueError(
                f"x must be [tasks, queries, ...] with tasks = {len(self)}, got {shown(x)}. "
                "Each adapted model belongs to one task of the batch that it was adapted on."
            )
        if mask is not None:
            check_mask(mask, x)
        samples = Samples.unchecked(x, x, mask, None)
        with blaming(self.learner, None, {"batch.query": Samples.unchecked(x, x, None, None)}):
            yield samples

    def __repr__(self) -> str:
        return f"Adapted(tasks={len(self)}, engine={self.engine!r})"


def adapt(
    engine: Engine,
    learner: TaskLearner,
    state: State,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Adapted:
    """Adapts to every task.

    Args:
        engine: Runs the tasks.
        learner: Adapts; its parameters are read from `state` only.
        state: The learner's parameters and buffers, by name.
        support: The tasks' support samples.
        loss_fn: The inner loss.
        steps: Inner steps.
    """
    features = embed(engine, learner, state, support)
    fast = engine.adapt(learner, state, features, support, loss_fn, steps)
    return Adapted(learner, state, fast, engine)


def embed(engine: Engine, learner: TaskLearner, state: State, samples: Samples) -> Any:
    """What tasks share, of their inputs ``[tasks, samples, ...]``: these themselves, where nothing is."""
    if not learner.shares:
        return samples.x.contiguous()  # what each inner step reads lies together
    return engine.embed(learner, state, samples.x, samples.mask)
