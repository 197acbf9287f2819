"""Embeddings whose padding row stays without a gradient under ``torch.vmap``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trlearner.base.types import Fast, State
from trlearner.engines.instead import Instead
from trlearner.engines.task_learner import TaskLearner, Through
from trlearner.tasks.nested import Data


def padded_embeddings() -> Instead:
    """Inside of it, `torch.nn.functional.embedding` passes no gradient to its padding row.

    The batching rule of ``torch.vmap`` joins the tables of all tasks into one and masks the padding row
    of the first table only. What it does with ``scale_grad_by_freq=True`` is refused.

    Example:
        >>> tables = torch.ones(2, 3, 1, requires_grad=True)
        >>> indices = torch.tensor([[0, 1], [0, 1]])
        >>> layer = torch.vmap(lambda i, w: F.embedding(i, w, padding_idx=0))
        >>> with padded_embeddings():
        ...     (gradient,) = torch.autograd.grad(layer(indices, tables).sum(), tables)
        >>> gradient.squeeze(-1)
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """
    return Instead({F.embedding: _embedding})


def padded(learner: TaskLearner, inputs: Data) -> TaskLearner:
    """The learner, with its padding rows held fixed wherever it may have some.

    Args:
        learner: Is about to run under ``torch.vmap``.
        inputs: What its model is given. Integers may be looked up by a function rather than by a layer.
    """
    if inputs.is_floating_point() and not concerns(learner.modules()):
        return learner
    return _Padded(learner)


def concerns(layers: Iterable[nn.Module]) -> bool:
    """Whether some of these layers is an embedding that ``torch.vmap`` gets wrong."""
    tables = (m for m in layers if isinstance(m, nn.Embedding))
    return any(m.padding_idx is not None or m.scale_grad_by_freq for m in tables)


class _Padded(Through[TaskLearner]):
    """A learner whose embeddings leave their padding row alone."""

    def embed(self, state: State, x: Data) -> Any:
        with padded_embeddings():
            return self.learner.embed(state, x)

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        with padded_embeddings():
            return self.learner.predict(state, fast, features)


def _embedding(
    indices: Tensor,
    table: Tensor,
    *,
    padding_idx: int | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> Tensor:
    if scale_grad_by_freq:
        raise NotImplementedError(
            "torch.vmap counts an embedding's indices over all tasks together, so scale_grad_by_freq=True "
            "would be wrong. Use engine='loop', or build the embedding without it."
        )
    rows = F.embedding(indices, table, None, max_norm, norm_type, False, sparse)
    if padding_idx is None:
        return rows
    padding = padding_idx if padding_idx >= 0 else len(table) + padding_idx
    return torch.where((indices == padding)[..., None], rows.detach(), rows)
