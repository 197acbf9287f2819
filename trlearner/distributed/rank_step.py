"""One meta-step on one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trlearner.base.functional import tensors
from trlearner.distributed.agreement import REGULARIZER, parameters_of
from trlearner.distributed.asked import Asked
from trlearner.distributed.collective import Ranks, gather_rows
from trlearner.distributed.exchange import gate, share
from trlearner.distributed.kind import Kind, agree_on_kinds, kind_of
from trlearner.distributed.plan import Plan
from trlearner.distributed.term import Found, relate_ranks
from trlearner.distributed.traffic import counted
from trlearner.engines.adapted import Adapted
from trlearner.engines.choose import without_graph
from trlearner.learners.protocol import Learner
from trlearner.regularizer.meta_step import (
    StepState,
    asking,
    described,
    loss_in,
    own_part,
    prototypes_of,
    questions,
    state_of_loss,
)
from trlearner.regularizer.output import Output
from trlearner.regularizer.regularizer import TRLearner
from trlearner.relations.consistency import mixture_kind
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.queries import choose_queries
from trlearner.tasks.samples import Samples

ASKED = tuple(Asked.__dataclass_fields__)


@dataclass(frozen=True, eq=False)
class Local:
    """What a rank found by itself.

    Attributes:
        models: Its models.
        predictions: Of its models on their own tasks' queries ``[own tasks, queries, ...]``.
        losses: Of its tasks.
        chosen: The queries of the relation term.
        asked: What it brings to that; ``None`` where there is none.
        facts: What must be the same on all ranks that have tasks.
        kinds: What tensors are like, by name.
    """

    models: Adapted
    predictions: Tensor
    losses: Tensor
    chosen: Samples
    asked: Asked | None
    facts: dict[str, int]
    kinds: dict[str, Kind | None]


class RankStep:
    """What a rank does in a step: by itself, then together with the others.

    Args:
        ranks: Who shares the tasks.
        learner: Adapts.
        regularizer: Relates.
        plan: What the step is about.
        by_ddp: Whether DDP brings gradients together; it waits for one of every parameter.
    """

    def __init__(
        self, ranks: Ranks, learner: Learner, regularizer: TRLearner, plan: Plan, by_ddp: bool
    ) -> None:
        self.ranks, self.learner, self.reg, self.plan = ranks, learner, regularizer, plan
        self.device = regularizer.relation.weight.device
        self.zero: Tensor | None = None
        trained = {n: p for n, p in parameters_of(learner, regularizer).items() if p.requires_grad}
        self.gated: dict[str, Tensor] = {}
        if torch.is_grad_enabled() and trained:
            self.zero, same = gate(list(trained.values()), fill=by_ddp)
            self.gated = dict(zip(trained, same, strict=True))
        if by_ddp and self.gated:
            size = sum(p.numel() * p.element_size() for p in trained.values())
            sent = 2 * (ranks.size - 1) * size // ranks.size
            counted().add("gradients (by DDP)", sent, sent)

    def run(self, scale: float) -> Output:
        """The step; `scale` is what its gradient is multiplied with.

        Raises:
            ValueError: Naming what does not fit, or differs between ranks.
            LostRank: Another rank has failed or is gone.
        """
        state, local, error = None, None, None
        try:
            state = self._state()
            if self.plan.batch is not None:
                local = self._alone(state, self.plan.batch)
        except Exception as raised:  # told to the others, so that they do not wait
            error = raised
        own = None if local is None else local.kinds
        kinds, facts = agree_on_kinds(
            self.ranks,
            self.plan.counts,
            error is not None,
            own or dict.fromkeys(("predictions", *ASKED)),
            {"mixture of logits": 0, "ways": 0} if local is None else local.facts,
        )
        if error is not None:
            raise error
        assert state is not None
        found = self._together(state, local, kinds, facts) if self.plan.related else None
        return self._output(state, local, found, kinds["predictions"], scale)

    def _state(self) -> StepState:
        learner, reg, batch, related = self.learner, self.reg, self.plan.batch, self.plan.related
        if batch is not None:
            state = reg.state(learner, batch, related)
        else:
            own = tensors(reg) if related else {}
            state = StepState(learner.state(), own | state_of_loss(reg.loss_fn))
        gated = self.gated
        return StepState(
            {name: gated.get(name, t) for name, t in state.learner.items()},
            {name: gated.get(REGULARIZER + name, t) for name, t in state.regularizer.items()},
        )

    def _alone(self, state: StepState, batch: TaskBatch) -> Local:
        learner, reg, plan, query = self.learner, self.reg, self.plan, batch.query
        reg.check_call(learner, batch, sum(plan.counts))  # warns of too few tasks
        # "auto" may have settled for a graph.
        engine = without_graph(learner.engine_for(batch.support, reg.loss_fn, query))
        parts = reg.parts
        models, embedded, predictions, losses = own_part(
            parts, engine, learner, state, batch, plan.related
        )
        chosen, asked, askers = query, None, models
        if plan.related:
            choice = None
            if plan.keys is not None:
                first = sum(plan.counts[: self.ranks.rank])
                keys = plan.keys[first : first + len(batch)]
                choice = choose_queries(parts.options.queries, keys, query)
            askers = asking(models, parts.options.head)
            chosen, embedded, later = questions(askers, query, embedded, choice)
            embeddings = described(reg.encoder, models, state.regularizer, batch)
            prototypes = prototypes_of(parts, models, state.regularizer, batch)
            asked = Asked(embeddings, embedded.features, prototypes, embedded.mask, later)
        logits = mixture_kind(parts.options.mixture, query.y, "sum") == "logits"
        facts = {"mixture of logits": int(logits), "ways": batch.ways or 0}
        said = kind_of(predictions[:, 0])  # of one query
        kinds = {"predictions": said} | {n: kind_of(getattr(asked, n, None)) for n in ASKED}
        return Local(askers, predictions, losses, chosen, asked, facts, kinds)

    def _together(
        self,
        state: StepState,
        local: Local | None,
        kinds: dict[str, Kind | None],
        facts: dict[str, int],
    ) -> Found:
        outputs, embeddings = kinds["predictions"], kinds["embeddings"]
        assert outputs is not None and embeddings is not None
        # Always, so that all ranks take part in the backward pass.
        told = {n: kinds[n] for n in ASKED} | {"embeddings": embeddings._replace(graded=True)}
        asked = None if local is None else local.asked
        if asked is None:
            asked = Asked(**{n: None if k is None else self._empty(k) for n, k in told.items()})  # type: ignore[arg-type]
        chosen = math.ceil(self.reg.options.queries * self.plan.queries)
        return relate_ranks(
            self.reg.parts,
            self.ranks,
            self.plan.counts,
            state.regularizer["relation.weight"],
            None if local is None else local.models,
            asked,
            told,
            outputs._replace(shape=(chosen, *outputs.shape)),
            "logits" if facts["mixture of logits"] else "values",
        )

    def _empty(self, kind: Kind) -> Tensor:
        return torch.zeros(0, *kind.shape, dtype=kind.dtype, device=self.device)

    def _output(
        self,
        state: StepState,
        local: Local | None,
        found: Found | None,
        outputs: Kind | None,
        scale: float,
    ) -> Output:
        total, lam = sum(self.plan.counts), self.reg.lam
        assert outputs is not None
        own = self._empty(outputs).sum() if local is None else local.losses.sum()
        related = self._related(state, local, found, own)
        mine = own / total
        if found is not None:
            mine = mine + lam * related / total
        if self.zero is not None:
            mine = mine + self.zero
        sure = None if found is None else found.confidence
        task_loss, relation_loss, sureness = (self._sums(own, related, sure) / total).unbind()
        whole = task_loss if found is None else task_loss + lam * relation_loss
        whole = whole.to(mine.dtype)
        all_queries = outputs._replace(shape=(self.plan.queries, *outputs.shape))
        out = Output(
            share(mine, whole, scale) if mine.requires_grad else whole,
            task_loss.to(own.dtype),
            relation_loss.to(own.dtype),
            self._empty(all_queries) if local is None else local.predictions.detach(),
            "idle" if local is None else local.models.engine,
        )
        if found is None:
            return out
        return replace(
            out,
            relations=found.relations.detach(),
            weights=found.weights.detach(),
            embeddings=found.embeddings.detach(),
            alignment_confidence=None if sure is None else (sureness / (total - 1)).to(own.dtype),
        )

    def _related(
        self, state: StepState, local: Local | None, found: Found | None, own: Tensor
    ) -> Tensor:
        """The sum over this rank's tasks of their losses under the mixtures."""
        if found is None:
            return torch.zeros_like(own)
        if local is None:
            return found.mixtures.sum()  # of nothing, but with a graph
        loss_fn = loss_in(self.reg.loss_fn, state.regularizer)
        return local.models.losses(loss_fn, found.mixtures, local.chosen).sum()

    def _sums(self, *values: Tensor | None) -> Tensor:
        """Sums over ranks, in their order, so that all ranks have the same bits."""
        row = torch.zeros(1, len(values), dtype=torch.float64, device=self.device)
        for place, value in enumerate(values):
            if value is not None:
                row[0, place] = value.detach()
        return gather_rows(self.ranks, row, [1] * self.ranks.size, "losses").sum(0)
