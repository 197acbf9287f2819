"""The relation term of tasks that lie on several ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trlearner.distributed.asked import Asked
from trlearner.distributed.collective import Ranks
from trlearner.distributed.exchange import exchange
from trlearner.distributed.kind import Kind
from trlearner.distributed.pairs import mixture_of, pairs_of
from trlearner.engines.adapted import Adapted
from trlearner.regularizer.meta_step import Parts, aligned
from trlearner.relations.consistency import neighbours, weights_of
from trlearner.relations.similarity import relation_matrix


@dataclass(frozen=True, eq=False)
class Found:
    """What the ranks made of it together.

    Attributes:
        mixtures: What all ranks' models say of this rank's tasks ``[own tasks, queries, ...]``.
        relations: M of all ranks' tasks ``[tasks, models]``.
        weights: Of the mixtures ``[tasks, models]``.
        embeddings: Of all ranks' tasks ``[tasks, dim]``.
        confidence: The sum over this rank's models of how sure each task's alignment is.
    """

    mixtures: Tensor
    relations: Tensor
    weights: Tensor
    embeddings: Tensor
    confidence: Tensor | None


def relate_ranks(
    parts: Parts,
    ranks: Ranks,
    counts: Sequence[int],
    relation: Tensor,
    own: Adapted | None,
    asked: Asked,
    kinds: Mapping[str, Kind | None],
    outputs: Kind,
    mixture: Literal["values", "logits"],
) -> Found:
    """Each task's queries as the mixture of its neighbours, on whatever rank they are, predicts them.

    Every rank asks its own models about all tasks' queries, mixes their answers, and sends each mixture
    to where the task is; there, what all ranks sent is mixed.

    Args:
        parts: Of the regularizer.
        ranks: Who shares the tasks.
        counts: How many tasks each rank has.
        relation: The weight of the similarity layer.
        own: This rank's models; ``None`` if it has none.
        asked: What this rank brings.
        kinds: What that is like on all ranks, by name.
        outputs: What a model says of a task: ``[queries, ...]``.
        mixture: What is mixed.
    """
    options = parts.options
    whole = asked.gathered(ranks, counts, kinds)
    relations = relation_matrix(whole.embeddings, relation)
    chosen = neighbours(relations.detach(), options.top_k)
    weights = weights_of(relations, options.normalize, parts.temperature, chosen)
    first, count = sum(counts[: ranks.rank]), counts[ranks.rank]
    alignment = None
    if whole.prototypes is not None and count:
        alignment = aligned(options, whole.prototypes, slice(first, first + count))
    tasks, models = pairs_of(len(relations), chosen, first, count)
    tasks, models = tasks.to(relations.device), models.to(relations.device)
    mixed = _nothing(whole, weights, outputs, mixture)
    if own is not None and len(tasks):
        matched = None if alignment is None else alignment[models, tasks]
        shares = weights[tasks, first + models]
        mixed = mixture_of(options, own, whole, tasks, models, shares, mixture, matched)
    sent = exchange(ranks, mixed, counts)
    together = sent.sum(0) if mixture == "values" else sent.logsumexp(0)
    confidence = None if whole.prototypes is None else _confidence(alignment, first, weights)
    return Found(together, relations, weights, whole.embeddings, confidence)


def _nothing(
    whole: Asked, weights: Tensor, outputs: Kind, mixture: Literal["values", "logits"]
) -> Tensor:
    """The mixture of no model ``[tasks, queries, ...]``, with a graph like that of any other."""
    dtype = torch.promote_types(weights.dtype, outputs.dtype)
    empty = 0.0 if mixture == "values" else -math.inf
    mixed = weights.new_full((len(weights), *outputs.shape), empty, dtype=dtype)
    return mixed + whole.embeddings[:0].sum().to(dtype)


def _confidence(alignment: Tensor | None, first: int, weights: Tensor) -> Tensor:
    if alignment is None:
        return weights.new_zeros(())
    best = alignment.detach().amax(-1).mean(-1)
    models = torch.arange(len(best), device=best.device)
    best[models, first + models] = 0
    return best.sum()
