"""One meta-step on one rank: first alone, then together with the others."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from trlearner.distributed.agreement import (
    PARAMETERS,
    REGULARIZER,
    SETTINGS,
    TENSORS,
    check_same,
    digests_of,
    every_rank,
    fingerprint,
    parameters_of,
    settings_of,
)
from trlearner.distributed.check import check_call
from trlearner.distributed.collectives import gate, gather_rows, tell
from trlearner.distributed.ranks import Ranks
from trlearner.distributed.relation_term import Local, Questions, relate_ranks
from trlearner.engines.choose import without_graph
from trlearner.learners.protocol import Learner
from trlearner.regularizer.meta_step import (
    StepState,
    asking,
    described,
    looks,
    own_part,
    prototypes_of,
    questions,
)
from trlearner.regularizer.output import Output, Term
from trlearner.regularizer.regularizer import TRLearner
from trlearner.relations.consistency import mixture_kind
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.nested import raw, unpacked
from trlearner.tasks.queries import choose_queries, query_keys
from trlearner.tasks.samples import Samples


class Plan(NamedTuple):
    """What a step is about; the same on all ranks but for `batch`."""

    batch: TaskBatch  # this rank's tasks, with as many queries as any rank's
    ranks: Ranks  # who shares the tasks, and how many each has
    related: bool  # whether there is a relation term
    keys: Tensor | None  # what queries are chosen by [tasks, queries]; None for all


def make_plan(
    ranks: Ranks, learner: Learner, reg: TRLearner, batch: TaskBatch, steps: int, check: bool
) -> Plan:
    """Finds out what all ranks have, and refuses to go on with ranks that do not fit together.

    Parameters are compared where no `steps` were taken before, and with `check` at every step.

    Raises:
        ValueError: Naming what does not fit, or differs between ranks.
        LostRank: Another rank has failed.
    """

    def own() -> tuple[tuple[dict[str, str], dict[str, str]], list[int]]:
        check_call(learner, reg, batch)
        settings = settings_of(learner, reg, steps) | {"check": str(check)}
        compared = parameters_of(learner, reg) if check or steps == 0 else {}
        digests = digests_of(compared)
        numbers = [len(batch), batch.query.x.shape[1], int(batch.query.mask is not None)]
        texts = settings, digests, reg.generator.get_state().numpy().tobytes()
        return (settings, digests), [*numbers, *map(fingerprint, texts)]

    (settings, digests), rows = every_rank(ranks, 6, own)
    counts, queries, masked, *prints = zip(*rows, strict=True)
    ranks = replace(ranks, counts=counts)
    check_same(ranks, prints[0], settings, SETTINGS)
    check_same(ranks, prints[1], digests, PARAMETERS)
    if len(set(queries)) > 1 or any(masked):
        q = batch.query
        padded = Samples.unchecked(q.x, q.y, q.is_real(), q.ways).padded(max(queries))
        batch = batch.replace(batch.support, padded)
    related, share = reg.lam != 0 and sum(counts) > 1, reg.options.queries
    if not related or share == 1:
        return Plan(batch, ranks, related, None)
    if len(set(prints[2])) > 1:  # rank 0's random state is everybody's
        reg.generator.set_state(tell(ranks, reg.generator.get_state().cpu())[0])
    keys = query_keys(share, sum(counts), max(queries), reg.generator)
    return Plan(batch, ranks, related, keys)


def rank_step(learner: Learner, reg: TRLearner, plan: Plan, by_ddp: bool, scale: float) -> Output:
    """A planned step; its gradient is multiplied with `scale`, and brought together `by_ddp` or by the user.

    Raises:
        ValueError: Naming what does not fit, or differs between ranks.
        LostRank: Another rank has failed or is gone.
    """
    zero, gated = torch.zeros(()), {}
    trained = {n: p for n, p in parameters_of(learner, reg).items() if p.requires_grad}
    if by_ddp and trained and torch.is_grad_enabled():
        zero, same = gate(list(trained.values()))
        gated = dict(zip(trained, same, strict=True))
    kinds: dict[str, str] = {}

    def own() -> tuple[Local, list[int]]:
        local = _alone(learner, reg, plan, gated)
        kinds.update(_kinds(local, plan.batch.ways))
        return local, [fingerprint(kinds)]

    local, rows = every_rank(plan.ranks, 1, own)
    check_same(plan.ranks, [row[0] for row in rows], kinds, TENSORS)
    term = None if local.questions is None else relate_ranks(reg.parts, plan.ranks, local)
    return _output(reg, plan.ranks, local, term, zero, scale)


def _alone(learner: Learner, reg: TRLearner, plan: Plan, gated: dict[str, Tensor]) -> Local:
    """What a rank does by itself, with `gated` parameters by their names in `parameters_of`."""
    batch, query, parts = plan.batch, plan.batch.query, reg.parts
    reg.check_call(learner, batch, sum(plan.ranks.counts))
    found = reg.state(learner, batch, plan.related)
    state = StepState(
        {name: gated.get(name, t) for name, t in found.learner.items()},
        {name: gated.get(REGULARIZER + name, t) for name, t in found.regularizer.items()},
    )
    # "auto" may have settled for a graph.
    engine = without_graph(learner.engine_for(batch.support, reg.loss_fn, query))
    own = own_part(parts, engine, learner, state, batch, plan.related)
    mixture = mixture_kind(parts.options.mixture, query.labelled, "sum")
    if not plan.related:
        return Local(state, own.models, own.predictions, own.losses, query, None, mixture)
    choice = None
    if plan.keys is not None:
        choice = choose_queries(parts.options.queries, plan.keys[plan.ranks.own], query)
    models = asking(own.models, parts.options.head)
    chosen, asked, later = questions(models, query, own.asked, choice)
    embeddings = described(reg.encoder, own.models, state.regularizer, batch)
    prototypes = prototypes_of(parts, own.models, state.regularizer, batch)
    brought = Questions(embeddings, asked.features, prototypes, asked.mask, later)
    return Local(state, models, own.predictions, own.losses, chosen, brought, mixture)


def _kinds(local: Local, ways: int | None) -> dict[str, str]:
    """What must be the same of all ranks' tasks, in words."""
    tensors = {"predictions": local.predictions[:, 0]}
    if local.questions is not None:
        tensors |= local.questions.tensors()
    found = {name: f"{list(t.shape[1:])} of {t.dtype}" for name, t in tensors.items()}
    graded = ", ".join(name for name, t in tensors.items() if t.requires_grad)
    return found | {"mixture": local.mixture, "ways": str(ways), "what has gradients": graded}


def _output(
    reg: TRLearner,
    ranks: Ranks,
    local: Local,
    term: Term | None,
    zero: Tensor,
    scale: float,
) -> Output:
    """The whole meta-batch's losses, with the gradient of this rank's share."""
    total, own = sum(ranks.counts), local.losses.sum()
    related = sure = torch.zeros_like(own)
    if term is not None:
        related = term.loss
        sure = sure if term.alignment_confidence is None else term.alignment_confidence
    mine = (own + reg.lam * related) / total + zero.to(own)
    # Summed in the order of ranks, so that all ranks have the same bits.
    row = torch.stack([t.detach().double() for t in (own, related, sure)])[None]
    sums = gather_rows(ranks, row, "losses").sum(0) / total
    task_loss, relation_loss, confidence = sums.to(own.dtype).unbind()
    whole = (sums[0] + reg.lam * sums[1]).to(mine.dtype)
    loss, seen = whole + scale * (mine - mine.detach()), local.predictions.detach()
    structured = raw(unpacked(seen, local.models.learner.layout, 2))
    more = {} if term is None else looks(term)
    if more.get("alignment_confidence") is not None:
        more["alignment_confidence"] = confidence / (total - 1)
    return Output(loss, task_loss, relation_loss, structured, local.models.engine, **more)
