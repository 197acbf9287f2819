"""What goes into a meta-step besides parameters and data, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Output:
    """What a meta-step found. Only `loss` carries a graph; the rest is for looking.

    Attributes:
        loss: ``task_loss + lam * relation_loss``.
        task_loss: The learner's own meta-loss, a scalar.
        relation_loss: L_TR, a scalar; 0 where it was not computed.
        predictions: Every model on its own task's queries, ``[tasks, queries, ...]``; a tensor, or what the
            model returns of tensors.
        engine: The name of the engine that ran.
        relations: M ``[tasks, models]``; this and what follows is ``None`` where it was not computed.
        weights: The mixture weights ``[tasks, models]``.
        embeddings: What the relations were computed from, ``[tasks, dim]``.
        alignment_confidence: How sure the alignment of classes was, from 1 / classes to 1.
    """

    loss: Tensor
    task_loss: Tensor
    relation_loss: Tensor
    predictions: Any
    engine: str
    relations: Tensor | None = None
    weights: Tensor | None = None
    embeddings: Tensor | None = None
    alignment_confidence: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Draws:
    """What a meta-step draws at random or is told from outside; inputs of the pure step."""

    related: bool  # whether there is a relation term at all
    queries: Tensor | None  # [tasks, chosen]: the queries that it looks at; None for all
    task_weights: Tensor | None = None  # [tasks]: of the own losses; None for their mean


class Term(NamedTuple):
    """The relation term and what it is made of, with their graph."""

    loss: Tensor  # scalar
    relations: Tensor  # [tasks, models]
    weights: Tensor  # [tasks, models]
    embeddings: Tensor  # [tasks, dim]
    alignment_confidence: Tensor | None
