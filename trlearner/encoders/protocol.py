"""What a task encoder is."""

from __future__ import annotations

import abc
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from trlearner.batch import TaskBatch
from trlearner.learners.protocol import Learner
from trlearner.seam import Engine
from trlearner.types import Fast, State

PREFIX = "regularizer.encoder."
"""Where the state keeps an encoder's own parameters and buffers."""


class Encoder(nn.Module, abc.ABC):
    """Maps every task of a batch to a vector.

    Attributes:
        dim: The vector's width.
    """

    dim: int

    @abc.abstractmethod
    def encode(self, learner: Learner, state: State, batch: TaskBatch, fast: Fast) -> Tensor:
        """Embeddings ``[tasks, dim]``.

        Args:
            learner: Whose tasks these are.
            state: All parameters and buffers, the learner's before adaptation by their own names and
                this encoder's under `PREFIX`.
            batch: The tasks.
            fast: What adaptation made of each task.
        """

    def prepare(self, learner: Learner, batch: TaskBatch) -> None:
        """Called before `encode`, where a first batch may settle what was left open."""
        return

    def own(self, state: State) -> dict[str, Tensor]:
        """This encoder's own part of the state, by its own names."""
        return {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}


@runtime_checkable
class HasPrototypes(Protocol):
    """An encoder that can tell what a task's classes look like, which alignment needs."""

    def prototypes(self, learner: Learner, state: State, batch: TaskBatch) -> Tensor:
        """Mean features ``[tasks, classes, features]`` of every task's classes."""


@runtime_checkable
class AsksModels(Protocol):
    """An encoder that asks the adapted models themselves, which takes an engine to run them."""

    def ask(self, engine: Engine, learner: Learner, state: State, fast: Fast) -> Tensor:
        """Embeddings ``[tasks, dim]``, as `Encoder.encode` would return them."""


def embed_tasks(
    encoder: Encoder,
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    fast: Fast,
) -> Tensor:
    """Embeddings ``[tasks, dim]``, by whichever way the encoder offers.

    Args:
        encoder: Makes a vector of each task.
        engine: Ran the adaptation.
        learner: As in `Encoder.encode`.
        state: As in `Encoder.encode`.
        batch: As in `Encoder.encode`.
        fast: As in `Encoder.encode`.
    """
    if isinstance(encoder, AsksModels):
        return encoder.ask(engine, learner, state, fast)
    return encoder.encode(learner, state, batch, fast)


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
