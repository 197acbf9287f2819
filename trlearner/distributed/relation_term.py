"""The relation term of tasks that lie on several ranks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trlearner.base.functional import take
from trlearner.distributed.collectives import exchange, gather
from trlearner.distributed.ranks import Ranks
from trlearner.engines.adapted import Adapted, Embedded
from trlearner.engines.budget import within_budget
from trlearner.engines.chunks import mixed_in_chunks
from trlearner.regularizer.meta_step import Parts, StepState, aligned, loss_in
from trlearner.regularizer.options import Options
from trlearner.regularizer.output import Term
from trlearner.relations.consistency import mix, neighbours, weights_of
from trlearner.relations.similarity import relation_matrix
from trlearner.tasks.nested import Data, arranged, leaves
from trlearner.tasks.samples import Samples

Mixture = Literal["values", "logits"]


class Questions(NamedTuple):
    """What tasks bring to the relation term, of one rank or of all."""

    embeddings: Tensor  # [tasks, dim]
    features: Data  # the queries that models are asked about, as they take them
    prototypes: Tensor | None  # [tasks, classes, features], if classes are aligned
    mask: Tensor | None  # [tasks, queries], if there is one
    choice: Tensor | None  # [tasks, chosen], if queries are chosen after the forward pass

    def tensors(self) -> dict[str, Tensor]:
        """All that there are, by name and path."""
        there = {name: value for name, value in self._asdict().items() if value is not None}
        return {f"{n}{path}": leaf for n, value in there.items() for path, leaf in leaves(value)}

    def gathered(self, ranks: Ranks) -> Questions:
        """Those of all ranks' tasks, with a graph."""
        there = self.tensors()
        rows = dict(zip(there, gather(ranks, *there.values()), strict=True))
        features = [rows.pop(f"features{path}") for path, _ in leaves(self.features)]
        return self._replace(features=arranged(self.features, features), **rows)


class Local(NamedTuple):
    """What a rank found by itself."""

    state: StepState
    models: Adapted  # as the relation term asks them
    predictions: Tensor  # of its models on their own tasks' queries [own tasks, queries, ...]
    losses: Tensor  # [own tasks]
    chosen: Samples  # the queries of the relation term
    questions: Questions | None  # None where there is no relation term
    mixture: Mixture  # what is mixed


class Pairs(NamedTuple):
    """Some models, each asked about some task."""

    models: Tensor  # [pairs], among this rank's
    tasks: Tensor  # [pairs], among those of all ranks
    weights: Tensor  # w_ij [pairs]
    alignment: Tensor | None  # A_ji [pairs, classes, classes], if classes are aligned

    def part(self, part: slice | Tensor) -> Pairs:
        """Some of the pairs."""
        return Pairs(*(None if t is None else t[part] for t in self))  # type: ignore[arg-type]


def relate_ranks(parts: Parts, ranks: Ranks, local: Local) -> Term:
    """Each task's queries as the mixture of its neighbours, on whatever rank they are, predicts them.

    Every rank asks its own models about all tasks' queries, mixes their answers, and sends each mixture
    to where the task is; there, what all ranks sent is mixed.

    Args:
        parts: Of the regularizer.
        ranks: Who shares the tasks.
        local: What this rank found by itself.

    Returns:
        A `Term` of all ranks' tasks. Only its loss, and how sure its alignment is, are sums over this rank's.
    """
    options, state, own = parts.options, local.state.regularizer, ranks.own
    assert local.questions is not None
    whole = local.questions.gathered(ranks)
    relations = relation_matrix(whole.embeddings, state["relation.weight"])
    chosen = neighbours(relations.detach(), options.top_k)
    weights = weights_of(relations, options.normalize, parts.temperature, chosen)
    alignment = None if whole.prototypes is None else aligned(options, whole.prototypes, own)
    pairs = pairs_of(weights, chosen, own, alignment)
    sent = exchange(ranks, _mixture(options, local.models, whole, pairs, local.mixture))
    mixtures = sent.sum(0) if local.mixture == "values" else sent.logsumexp(0)
    loss_fn = loss_in(parts.loss_fn, state)
    related = local.models.losses(loss_fn, mixtures, local.chosen).sum()
    confidence = None if alignment is None else _confidence(alignment, own.start)
    return Term(related, relations, weights, whole.embeddings, confidence)


def pairs_of(weights: Tensor, chosen: Tensor | None, own: slice, alignment: Tensor | None) -> Pairs:
    """Which of this rank's models are asked about which tasks, model by model.

    Args:
        weights: Of the mixtures ``[tasks, models]``.
        chosen: The `neighbours` of each task; ``None`` for all.
        own: This rank's models among all.
        alignment: Of this rank's models ``[own models, tasks, classes, classes]``.
    """
    asked = torch.ones_like(weights, dtype=torch.bool)
    if chosen is not None:
        asked = torch.zeros_like(asked).scatter(1, chosen, True)
        # A rank that nobody asks takes part in the backward pass; a task's own model has no weight.
        asked[own.start, own.start] = True
    models, tasks = asked[:, own].T.nonzero(as_tuple=True)
    matched = None if alignment is None else alignment[models, tasks]
    return Pairs(models, tasks, weights[tasks, own.start + models], matched)


def _mixture(
    options: Options, models: Adapted, whole: Questions, pairs: Pairs, mixture: Mixture
) -> Tensor:
    """What this rank's models say of all tasks, mixed: ``[tasks, queries, ...]``."""
    features, mask, total = whole.features, whole.mask, len(whole.features)
    every = len(pairs.tasks) == total * len(models)

    def ask(part: slice) -> Tensor:
        some = pairs.part(part)
        if every:  # model by model, which each run once over all tasks
            asked = models[part.start // total : part.stop // total]
            says = asked.cross(Embedded(features, mask)).flatten(0, 1)
        else:
            queries = Embedded(features[some.tasks], None if mask is None else mask[some.tasks])
            says = models[some.models].predict(queries)
        return says if whole.choice is None else take(says, whole.choice[some.tasks])

    def mixed(says: Tensor, part: slice) -> Tensor:
        return mix_pairs(says, pairs.part(part), total, mixture)

    size = options.chunk_size
    if size == "auto":
        # What one model is asked about all tasks is the measure.
        size = within_budget(
            lambda _: ask(slice(0, total)), len(models), options.memory_budget, features
        )
    size = None if size is None else size * total
    return mixed_in_chunks(ask, mixed, len(pairs.tasks), size, adds=mixture == "values")


def mix_pairs(says: Tensor, pairs: Pairs, total: int, mixture: Mixture) -> Tensor:
    """As `consistency.mix`, of pairs: ``[pairs, queries, ...] -> [tasks, queries, ...]``.

    A task that is in no pair is told nothing: zeros, or logarithms of zero.

    Args:
        says: f_j(X_i) of each pair.
        pairs: The pairs.
        total: How many tasks there are.
        mixture: What is mixed.
    """
    if mixture == "logits":  # the logarithm of a weight of zero has no gradient
        weighty = pairs.weights > 0
        says, pairs = says[weighty], pairs.part(weighty)
    tasks = pairs.tasks
    alignment = None if pairs.alignment is None else pairs.alignment[None]
    terms = mix(says[None], pairs.weights[:, None], mixture, alignment)
    if mixture == "values":
        return terms.new_zeros(total, *terms.shape[1:]).index_add(0, tasks, terms)
    # A sum of exponentials by tasks; where no weight is above zero it is empty, and gradients stay finite.
    rows = tasks.reshape(-1, *[1] * (terms.ndim - 1)).expand_as(terms)
    top = terms.new_full((total, *terms.shape[1:]), -math.inf)
    top = top.scatter_reduce(0, rows, terms.detach(), "amax")
    top = torch.where(top.isfinite(), top, 0.0)
    summed = torch.zeros_like(top).index_add(0, tasks, (terms - top[tasks]).exp())
    some = summed > 0
    return torch.where(some, torch.where(some, summed, 1.0).log() + top, -math.inf)


def _confidence(alignment: Tensor, first: int) -> Tensor:
    best = alignment.detach().amax(-1).mean(-1)
    models = torch.arange(len(best), device=best.device)
    best[models, first + models] = 0
    return best.sum()
