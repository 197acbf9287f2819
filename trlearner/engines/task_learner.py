"""The pure seam between learners and engines.

A learner says what happens to *one* task, as functions of an explicit state. An engine decides how
many tasks run at once and how gradients are taken. Neither knows the other's insides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from trlearner.base.types import Fast, State
from trlearner.tasks.nested import Data, Layout

Gradients = dict[str, Tensor | None]

StepSize = float | Tensor | Sequence[float] | Sequence[Tensor]
"""A step size, a number or a tensor of an entry's shape; or one for each step, of which the last repeats."""


def at_step(size: StepSize, step: int) -> float | Tensor:
    """The step size at inner step `step`.

    Example:
        >>> at_step(0.1, 7), at_step([0.2, 0.3], 7)
        (0.1, 0.3)
    """
    if isinstance(size, (int, float, Tensor)):
        return size
    return size[min(step, len(size) - 1)]


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
        spread: Gives each task its own view of shared tensors, by name.
        gradient: ``gradient(fast, first_order)``, of the support loss; ``None`` for an entry that the
            loss does not use. It carries a graph unless ``first_order`` (or gradients are off).
    """

    features: Data
    targets: Data
    mask: Tensor | None
    ways: int | None
    steps: int
    lift: Callable[[Callable[..., Any]], Callable[..., Any]]
    spread: Callable[[Fast], Fast]
    gradient: Callable[[Fast, bool], Gradients]


@runtime_checkable
class TaskLearner(Protocol):
    """What an engine needs of a learner; every method is for one task and changes nothing."""

    shares: bool
    """Whether `embed` computes anything."""

    @property
    def layout(self) -> Layout | None:
        """How predictions of several tensors lie in one; ``None`` where they are one, or none was made."""

    def state(self) -> State:
        """Every parameter and buffer by name; without their graph where gradients are off."""

    def modules(self) -> Iterator[nn.Module]:
        """The learner's modules."""

    def embed(self, state: State, x: Data) -> Any:
        """What all tasks compute alike, before adaptation; inputs themselves where nothing is."""

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """Adapts to the support set lent by the engine."""

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
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
        self.shares = learner.shares

    @property
    def layout(self) -> Layout | None:
        """The learner's."""
        return self.learner.layout

    def state(self) -> State:
        """The learner's."""
        return self.learner.state()

    def modules(self) -> Iterator[nn.Module]:
        """The learner's."""
        return self.learner.modules()

    def embed(self, state: State, x: Data) -> Any:
        """As the learner does it."""
        return self.learner.embed(state, x)

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """As the learner does it."""
        return self.learner.inner(state, loop)

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
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

    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The step size for every entry of `start`; see `at_step`."""
