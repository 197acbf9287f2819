"""The pure seam between learners and engines.

A learner says what happens to *one* task, as functions of an explicit state. An engine decides how
many tasks run at once and how gradients are taken. Neither knows the other's insides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from trlearner.samples import Samples
from trlearner.types import Fast, LossFn, State

Gradients = dict[str, Tensor | None]


@dataclass(frozen=True)
class InnerLoop:
    """What an engine lends to a learner's `TaskLearner.inner`.

    `features`, `targets`, `mask` and everything made by `lift` either belong to one task or carry a
    leading axis of tasks, as the engine likes; elementwise arithmetic works on both.

    Attributes:
        features: What `TaskLearner.embed` made of the support inputs.
        targets: The support targets.
        mask: True where a support sample is real, or ``None``.
        ways: The number of classes, if targets are labels and it was given.
        steps: How many steps to take.
        lift: Turns a function of one task's tensors into one of the engine's layout.
        spread: Gives each task its own view of a shared tensor.
        gradient: ``gradient(fast, first_order)``, of the support loss; ``None`` for an entry that the
            loss does not use. It carries a graph unless ``first_order`` (or gradients are off).
    """

    features: Tensor
    targets: Tensor
    mask: Tensor | None
    ways: int | None
    steps: int
    lift: Callable[[Callable[..., Any]], Callable[..., Any]]
    spread: Callable[[Tensor], Tensor]
    gradient: Callable[[Fast, bool], Gradients]


@runtime_checkable
class TaskLearner(Protocol):
    """What an engine needs of a learner; every method is for one task and changes nothing."""

    def state(self) -> State:
        """Every parameter and buffer by name; without their graph where gradients are off."""

    def modules(self) -> Iterator[nn.Module]:
        """The learner's modules."""

    def embed(self, state: State, x: Tensor) -> Tensor:
        """What all tasks compute alike, before adaptation; inputs themselves where nothing is."""

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """Adapts to the support set lent by the engine."""

    def predict(self, state: State, fast: Fast, features: Tensor) -> Tensor:
        """Predictions ``[samples, ...]`` from what `embed` returned."""

    def couples_samples(self) -> bool:
        """Whether a sample's prediction depends on the others of its batch."""


L = TypeVar("L", bound=TaskLearner)


class Through(Generic[L]):
    """A learner that does as another does; whoever derives from it says what differs.

    Args:
        learner: The other.
    """

    def __init__(self, learner: L) -> None:
        self.learner = learner

    def state(self) -> State:
        """The learner's."""
        return self.learner.state()

    def modules(self) -> Iterator[nn.Module]:
        """The learner's."""
        return self.learner.modules()

    def embed(self, state: State, x: Tensor) -> Tensor:
        """As the learner does it."""
        return self.learner.embed(state, x)

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """As the learner does it."""
        return self.learner.inner(state, loop)

    def predict(self, state: State, fast: Fast, features: Tensor) -> Tensor:
        """As the learner does it."""
        return self.learner.predict(state, fast, features)

    def couples_samples(self) -> bool:
        """Whether the learner does."""
        return self.learner.couples_samples()


@runtime_checkable
class GradientTaskLearner(TaskLearner, Protocol):
    """A learner whose inner loop is gradient descent, which an engine may run by other means."""

    first_order: bool

    def start(self, state: State) -> Fast:
        """What the inner loop moves, where it starts."""

    def rate(self, state: State, name: str, step: int) -> float | Tensor:
        """The step size for one entry of `start`."""


@dataclass(frozen=True)
class Engine:
    """One way to run many tasks: four functions over ``[tasks, ...]`` tensors.

    Attributes:
        name: What `out.engine` says.
        embed: ``(learner, state, x, mask) -> features [tasks, samples, ...]``.
        adapt: ``(learner, state, features, support, loss_fn, steps) -> fast``, each entry with a
            leading axis of tasks; a graph is kept exactly where gradients are enabled.
        predict: ``(learner, state, fast, features, mask) -> [tasks, queries, ...]``.
        cross: ``(learner, state, fast, features, mask, neighbours) -> [models, tasks, queries, ...]``.
            ``neighbours [models, tasks]`` names the models to ask for each task; ``None`` asks all.
        loss: ``(loss_fn, predictions, y, mask) -> [tasks]``.
    """

    name: str
    embed: Callable[[TaskLearner, State, Tensor, Tensor | None], Tensor]
    adapt: Callable[[TaskLearner, State, Tensor, Samples, LossFn, int], Fast]
    predict: Callable[[TaskLearner, State, Fast, Tensor, Tensor | None], Tensor]
    cross: Callable[
        [TaskLearner, State, Fast, Tensor, Tensor | None, Tensor | None],
        Tensor,
    ]
    loss: Callable[[LossFn, Tensor, Tensor, Tensor | None], Tensor]
