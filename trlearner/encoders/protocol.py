"""What a task encoder is."""

from __future__ import annotations

import abc
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from trlearner.base.types import State
from trlearner.engines.adapted import Models
from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch


class Encoder(nn.Module, abc.ABC):
    """Maps every task of a batch to a vector.

    Attributes:
        dim: The vector's width.
    """

    dim: int

    @abc.abstractmethod
    def encode(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """Embeddings ``[tasks, dim]``.

        Args:
            state: This encoder's parameters and buffers by its own names, beside the regularizer's.
            batch: The tasks.
            models: The tasks' adapted models; `models.state` are their learner's parameters and buffers
                before adaptation.
        """

    def prepare(self, learner: Learner | None, batch: TaskBatch) -> None:
        """Called before `encode`, where a first batch may settle what was left open.

        Args:
            learner: Whose models are described; ``None`` for those of a loop of the user's own.
            batch: The tasks.
        """
        return


@runtime_checkable
class HasPrototypes(Protocol):
    """An encoder that can tell what a task's classes look like, which alignment needs."""

    def prototypes(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """Mean features ``[tasks, classes, features]`` of every task's classes; arguments as of `encode`."""


def check_width(given: int, expected: int, what: str, argument: str) -> None:
    """Refuse features of another width than was announced.

    Raises:
        ValueError: Naming both.
    """
    if given != expected:
        raise ValueError(
            f"{argument} must be the width of {what}, which is {given}, got {expected}. "
            f"Pass {argument}={given}."
        )
