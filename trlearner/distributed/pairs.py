"""Some models asked about some tasks, and their answers mixed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import einsum
from torch import Tensor

from trlearner.base.functional import take
from trlearner.distributed.asked import Asked
from trlearner.engines.adapted import Adapted, Embedded
from trlearner.engines.budget import within_budget
from trlearner.engines.chunks import mixed_in_chunks
from trlearner.regularizer.options import Options
from trlearner.relations.consistency import log_weights


def pairs_of(total: int, chosen: Tensor | None, first: int, own: int) -> tuple[Tensor, Tensor]:
    """Which of this rank's models are asked about which tasks: ``tasks [pairs], models [pairs]``.

    Args:
        total: How many tasks there are.
        chosen: The `neighbours` of each; ``None`` for all.
        first: This rank's first model among all.
        own: How many it has.
    """
    if chosen is None:
        every = torch.arange(total)
        return every.repeat(own), every[:own].repeat_interleave(total)
    tasks, places = ((chosen >= first) & (chosen < first + own)).nonzero(as_tuple=True)
    return tasks, chosen[tasks, places] - first


def mixture_of(
    options: Options,
    own: Adapted,
    whole: Asked,
    tasks: Tensor,
    models: Tensor,
    weights: Tensor,
    mixture: Literal["values", "logits"],
    alignment: Tensor | None,
) -> Tensor:
    """What this rank's models say of all tasks, mixed: ``[tasks, queries, ...]``.

    Args:
        options: Of the regularizer.
        own: This rank's models.
        whole: What all ranks bring.
        tasks: Of each pair, among those of all ranks ``[pairs]``.
        models: Of each pair, among this rank's ``[pairs]``.
        weights: Of each pair ``[pairs]``.
        mixture: What is mixed.
        alignment: Of each pair ``[pairs, classes, classes]``, if classes are aligned.
    """
    total = len(whole.features)
    every = len(tasks) == total * len(own)

    def ask(part: slice) -> Tensor:
        who, what, features, mask = models[part], tasks[part], whole.features, whole.mask
        if every:  # model by model, which each run once over all tasks
            some = own[part.start // total : part.stop // total]
            says = some.cross(Embedded(features, mask)).flatten(0, 1)
        else:
            mask = None if mask is None else mask[what]
            says = own[who].predict(Embedded(features[what], mask))
        return says if whole.choice is None else take(says, whole.choice[what])

    def mixed(says: Tensor, part: slice) -> Tensor:
        aligned = None if alignment is None else alignment[part]
        return mix_pairs(says, weights[part], tasks[part], total, mixture, aligned)

    size = options.chunk_size
    if size == "auto":
        # What one model is asked about all tasks is the measure.
        size = within_budget(
            lambda _: ask(slice(0, total)), len(own), options.memory_budget, whole.features
        )
    size = None if size is None else size * total
    return mixed_in_chunks(ask, mixed, len(tasks), size, adds=mixture == "values")


def mix_pairs(
    says: Tensor,
    weights: Tensor,
    tasks: Tensor,
    total: int,
    mixture: Literal["values", "logits"],
    alignment: Tensor | None,
) -> Tensor:
    """As `consistency.mix`, of pairs: ``[pairs, queries, ...] -> [tasks, queries, ...]``.

    A task that is in no pair is told nothing: zeros, or logarithms of zero.

    Args:
        says: f_j(X_i) of each pair.
        weights: w_ij of each pair ``[pairs]``.
        tasks: i of each pair ``[pairs]``.
        total: How many tasks there are.
        mixture: What is mixed.
        alignment: A_ji of each pair ``[pairs, classes, classes]``.
    """
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
        logs = torch.logsumexp(logs[..., None, :] + log_weights(alignment)[:, None], dim=-1)
    terms = logs + log_weights(share)
    # A sum of exponentials by tasks; where no weight is above zero it is empty, and gradients stay finite.
    with torch.no_grad():
        top = terms.new_full((total, *terms.shape[1:]), -math.inf)
        rows = tasks.reshape(-1, *[1] * (terms.ndim - 1)).expand_as(terms)
        top = top.scatter_reduce(0, rows, terms, "amax")
        top = torch.where(top.isfinite(), top, 0.0)
    summed = torch.zeros_like(top).index_add(0, tasks, (terms - top[tasks]).exp())
    some = summed > 0
    return torch.where(some, torch.where(some, summed, 1.0).log() + top, -math.inf)
