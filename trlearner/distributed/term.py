"""The relation term of tasks that lie on several ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trlearner import align
from trlearner.chunks import cross_in_chunks
from trlearner.consistency import nearest, relation_weights
from trlearner.distributed.collective import Ranks
from trlearner.distributed.exchange import Kind, exchange, gather
from trlearner.functional import take
from trlearner.learners.protocol import Learner
from trlearner.meta_step import PREFIX, Settings
from trlearner.relation import relation_matrix
from trlearner.seam import Engine
from trlearner.types import Fast, State


@dataclass(frozen=True, eq=False)
class Asked:
    """What a rank brings to the relation term; on a rank without tasks, of length 0.

    Attributes:
        embeddings: ``[own tasks, dim]``.
        features: What `Engine.embed` made of the queries that models are asked about.
        prototypes: ``[own tasks, classes, features]``, if classes are aligned.
        mask: ``[own tasks, queries]``, if there is one on any rank.
        choice: ``[own tasks, chosen]``, if queries are chosen after the forward pass.
    """

    embeddings: Tensor
    features: Tensor
    prototypes: Tensor | None
    mask: Tensor | None
    choice: Tensor | None


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
    settings: Settings,
    ranks: Ranks,
    counts: Sequence[int],
    engine: Engine | None,
    learner: Learner,
    state: State,
    fast: Fast,
    asked: Asked,
    graded: tuple[bool, bool],
    outputs: Kind,
    mixture: Literal["values", "logits"],
    temperature: float | Tensor,
) -> Found:
    """Each task's queries as the mixture of its neighbours, on whatever rank they are, predicts them.

    Every rank asks its own models about all tasks' queries, mixes their answers, and sends each mixture
    to where the task is; there, what all ranks sent is mixed.

    Args:
        settings: Of the regularizer.
        ranks: Who shares the tasks.
        counts: How many tasks each rank has.
        engine: Asks this rank's models; ``None`` if it has none.
        learner: Whose models these are.
        state: As in `meta_step`.
        fast: This rank's models.
        asked: What this rank brings.
        graded: Whether any rank's embeddings and prototypes, and any rank's features, want a gradient.
        outputs: What a model says of a task: ``[queries, ...]``.
        mixture: What is mixed.
        temperature: Of the softmax.
    """
    whole = _gathered(ranks, counts, asked, graded)
    relations = relation_matrix(whole.embeddings, state[PREFIX + "relation.weight"])
    weights = relation_weights(
        relations, settings.normalize, temperature=temperature, top_k=settings.top_k
    )
    first, own = sum(counts[: ranks.rank]), counts[ranks.rank]
    alignment = None
    if whole.prototypes is not None and own:
        matched = align.sinkhorn if settings.align == "sinkhorn" else align.hungarian
        alignment = matched(whole.prototypes, models=slice(first, first + own))
    tasks, models = _pairs(settings, relations, first, own)
    mixed = _nothing(whole, weights, outputs, mixture)
    if engine is not None and len(tasks):
        says = _predictions(settings, engine, learner, state, fast, whole, tasks, models)
        aligned = None if alignment is None else alignment[models, tasks]
        mixed = _mixed(says, weights[tasks, first + models], tasks, len(weights), mixture, aligned)
    parts = exchange(ranks, mixed, counts)
    together = parts.sum(0) if mixture == "values" else parts.logsumexp(0)
    confidence = None if whole.prototypes is None else _confidence(alignment, first, weights)
    return Found(together, relations, weights, whole.embeddings, confidence)


def _gathered(
    ranks: Ranks, counts: Sequence[int], asked: Asked, graded: tuple[bool, bool]
) -> Asked:
    named = {name: t for name, t in vars(asked).items() if t is not None}
    wanted = {"embeddings": True, "prototypes": graded[0], "features": graded[1]}
    kinds = [Kind(tuple(t.shape[1:]), t.dtype, wanted.get(n, False)) for n, t in named.items()]
    found = dict(zip(named, gather(ranks, list(named.values()), kinds, counts), strict=True))
    return Asked(**{name: found.get(name) for name in vars(asked)})  # type: ignore[arg-type]


def _pairs(settings: Settings, relations: Tensor, first: int, own: int) -> tuple[Tensor, Tensor]:
    """Which of this rank's models are asked about which tasks: ``tasks [pairs], models [pairs]``."""
    total = len(relations)
    if settings.top_k is None or settings.top_k >= total - 1:
        every = torch.arange(total, device=relations.device)
        return every.repeat(own), every[:own].repeat_interleave(total)
    neighbours = nearest(relations.detach(), settings.top_k)
    tasks, places = ((neighbours >= first) & (neighbours < first + own)).nonzero(as_tuple=True)
    return tasks, neighbours[tasks, places] - first


def _predictions(
    settings: Settings,
    engine: Engine,
    learner: Learner,
    state: State,
    fast: Fast,
    whole: Asked,
    tasks: Tensor,
    models: Tensor,
) -> Tensor:
    """What models say of tasks: ``[pairs, queries, ...]``."""
    total = len(whole.features)
    if len(tasks) == total * len(next(iter(fast.values()))):
        crossed = cross_in_chunks(
            engine, learner, state, fast, whole.features, whole.mask, None, settings.chunk_size
        )
        says = crossed.flatten(0, 1)
    else:
        size = len(tasks) if settings.chunk_size is None else settings.chunk_size * total
        says = torch.cat(
            [
                _asked(engine, learner, state, fast, whole, i, j, size < len(tasks))
                for i, j in zip(tasks.split(size), models.split(size), strict=True)
            ]
        )
    return says if whole.choice is None else take(says, whole.choice[tasks])


def _asked(
    engine: Engine,
    learner: Learner,
    state: State,
    fast: Fast,
    whole: Asked,
    tasks: Tensor,
    models: Tensor,
    anew: bool,
) -> Tensor:
    chosen = {name: values[models] for name, values in fast.items()}
    mask = None if whole.mask is None else whole.mask[tasks]
    arguments = learner, state, chosen, whole.features[tasks], mask
    if not anew:
        return engine.predict(*arguments)
    found: Tensor = checkpoint(engine.predict, *arguments, use_reentrant=False)
    return found


def _nothing(
    whole: Asked, weights: Tensor, outputs: Kind, mixture: Literal["values", "logits"]
) -> Tensor:
    """The mixture of no model ``[tasks, queries, ...]``, with a graph like that of any other."""
    dtype = torch.promote_types(weights.dtype, outputs.dtype)
    empty = 0.0 if mixture == "values" else -math.inf
    mixed = weights.new_full((len(weights), *outputs.shape), empty, dtype=dtype)
    return mixed + whole.embeddings[:0].sum().to(dtype)


def _mixed(
    says: Tensor,
    weights: Tensor,
    tasks: Tensor,
    total: int,
    mixture: Literal["values", "logits"],
    alignment: Tensor | None,
) -> Tensor:
    """As `consistency.mix`, of pairs: ``[pairs, queries, ...] -> [tasks, queries, ...]``."""
    share = weights.reshape(-1, *[1] * (says.ndim - 1))
    if mixture == "values":
        if alignment is not None:
            says = einsum(
                says,
                alignment,
                "pairs queries theirs, pairs classes theirs -> pairs queries classes",
            )
        terms = share * says
        return terms.new_zeros(total, *terms.shape[1:]).index_add(0, tasks, terms)
    if says.ndim != 3 or says.shape[-1] < 2:
        raise ValueError(
            "mixture='logits' needs predictions [tasks, queries, classes] of at least two classes, got "
            f"{list(says.shape)}. Pass mixture='values' if these are no class logits."
        )
    logs = says.log_softmax(-1)
    if alignment is not None:
        logs = torch.logsumexp(logs[..., None, :] + _log(alignment)[:, None], dim=-1)
    terms = logs + _log(share)
    # A sum of exponentials by tasks; where no weight is above zero it is empty, and gradients stay finite.
    with torch.no_grad():
        top = terms.new_full((total, *terms.shape[1:]), -math.inf)
        rows = tasks.reshape(-1, *[1] * (terms.ndim - 1)).expand_as(terms)
        top = top.scatter_reduce(0, rows, terms, "amax")
        top = torch.where(top.isfinite(), top, 0.0)
    summed = torch.zeros_like(top).index_add(0, tasks, (terms - top[tasks]).exp())
    some = summed > 0
    return torch.where(some, torch.where(some, summed, 1.0).log() + top, -math.inf)


def _log(weights: Tensor) -> Tensor:
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1.0).log(), -math.inf)


def _confidence(alignment: Tensor | None, first: int, weights: Tensor) -> Tensor:
    if alignment is None:
        return weights.new_zeros(())
    best = alignment.detach().amax(-1).mean(-1)
    models = torch.arange(len(best), device=best.device)
    best[models, first + models] = 0
    return best.sum()
