"""`MetaStep`: a regularized meta-step whose tasks lie on several ranks."""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from trlearner.batch import TaskBatch
from trlearner.consistency import mixture_kind
from trlearner.distributed import agreement
from trlearner.distributed.agreement import Header
from trlearner.distributed.collective import Ranks, gather_rows
from trlearner.distributed.exchange import Kind, gate, share
from trlearner.distributed.term import Asked, Found, relate_ranks
from trlearner.distributed.traffic import counted
from trlearner.encoders.protocol import HasPrototypes, embed_tasks
from trlearner.engines import compiled
from trlearner.engines.choose import ENGINES
from trlearner.functional import take, tensors
from trlearner.learners.protocol import Learner
from trlearner.meta_step import PREFIX, loss_in, state_of_loss
from trlearner.output import Output
from trlearner.regularizer import TRLearner
from trlearner.samples import Samples
from trlearner.seam import Engine
from trlearner.types import Fast, State

reduced_by: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Who brings the gradients of a learner's last step together: ``"ddp"`` or nobody yet, ``"you"``."""


class MetaStep(nn.Module):
    """``MetaStep(learner, reg)(batch)`` is ``reg(learner, batch)`` with the tasks of all ranks.

    Every rank adapts to the tasks of its own batch; M, the mixtures and the loss span all of them, and
    a run on several ranks equals a run on one with the ranks' batches one after the other. Ranks may
    have different numbers of tasks; one that has none passes ``None``.

    It is the module that `DistributedDataParallel` wraps, which sums its gradients; call ``ddp(batch)``.
    Without it, call `sync_gradients` between ``backward()`` and the optimizer's step. Without a process
    group it is the plain step.

    On several ranks, engines ``"auto"`` and ``"tune"`` never compile, and layers that draw at random
    draw on each rank from that rank's own random state. Queries are chosen as rank 0's generator says.

    Args:
        learner: Adapts; the same on all ranks.
        regularizer: Relates; the same on all ranks.
        group: The processes that share a meta-batch; by default all.
        reduction: How gradients will be brought together: ``"mean"`` as DDP does, so that they are scaled
            by the number of ranks, ``"sum"``, or ``"auto"``: the mean inside of DDP, else the sum.
        check: Compare all parameters' bits at every step, so that ranks that went apart are found.

    Returns:
        An `Output` whose `loss` has the value of the whole meta-batch on every rank, and the
        gradient of this rank's share; `relations`, `weights` and `embeddings` are of all tasks,
        `predictions` of this rank's. ``loss.backward()`` must be called on all ranks or on none.

    Example:
        >>> import trlearner as tr
        >>> learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=2)
        >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8, features=1, targets=1))
        >>> step, x = tr.MetaStep(learner, reg), torch.rand(4, 10, 1)
        >>> step(tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x))).relations.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        learner: Learner,
        regularizer: TRLearner,
        group: dist.ProcessGroup | None = None,
        reduction: Literal["auto", "mean", "sum"] = "auto",
        check: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(regularizer, TRLearner):
            raise TypeError(
                f"regularizer must be a TRLearner, got {type(regularizer).__name__}. MetaStep takes the "
                "learner first: tr.MetaStep(learner, reg)."
            )
        if not isinstance(learner, Learner):
            raise TypeError(
                f"learner must be a trlearner Learner such as tr.MAML(model), got "
                f"{type(learner).__name__}. MetaStep takes the learner first: tr.MetaStep(learner, reg)."
            )
        if reduction not in ("auto", "mean", "sum"):
            raise ValueError(f"reduction must be 'auto', 'mean' or 'sum', got {reduction!r}.")
        self.learner = learner
        self.regularizer = regularizer
        self.group = group
        self.reduction = reduction
        self.check = check
        self._steps = 0
        self._one_generator = False
        if dist.is_available() and dist.is_initialized():
            check_lazy(learner, regularizer)

    def forward(self, batch: TaskBatch | None) -> Output:
        """One meta-step; every rank must call it.

        Args:
            batch: This rank's tasks; ``None`` if it has none.

        Raises:
            ValueError: Naming what does not fit, or differs between ranks.
            LostRank: Another rank has failed or is gone.
        """
        if not (dist.is_available() and dist.is_initialized()):
            _check_launch()
            if batch is None:
                raise ValueError("batch is None, which only a rank among several may pass.")
            plain: Output = self.regularizer(self.learner, batch)
            return plain
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                copy = batch and batch.replace(batch.support.clone(), batch.query.clone())
                return self.forward(copy)
        ranks = Ranks.of(self.group)
        ddp = getattr(DistributedDataParallel, "_active_ddp_module", None) is not None
        mean = self.reduction == "mean" or (self.reduction == "auto" and ddp)
        plan = self._plan(ranks, batch)
        self._steps += 1
        if torch.is_grad_enabled():
            reduced_by[self.learner] = "ddp" if ddp else "you"
        return _Step(ranks, self.learner, self.regularizer, plan, fill=ddp).run(
            scale=ranks.size if mean else 1
        )

    def _plan(self, ranks: Ranks, batch: TaskBatch | None) -> Plan:
        """What all ranks are about to do, once they have been found to agree on it."""
        learner, reg = self.learner, self.regularizer
        options: dict[str, str] = {}
        bits: dict[str, int] = {}
        header, error = Header(failed=1), None
        try:
            self._check(batch)
            options = agreement.options_of(learner, reg, self._steps)
            if self.check:
                bits = agreement.fingerprints(_parameters(learner, reg))
            header = Header(
                tasks=0 if batch is None else len(batch),
                queries=0 if batch is None else batch.query.x.shape[1],
                masked=int(batch is not None and batch.query.mask is not None),
                options=agreement.fingerprint(options),
                parameters=agreement.fingerprint(bits),
                generator=agreement.fingerprint(reg.generator.get_state().numpy().tobytes()),
            )
        except Exception as raised:  # told to the others, so that they do not wait
            error = raised
        headers = agreement.exchange_headers(ranks, header)
        if error is not None:
            raise error
        agreement.check_same(ranks, headers, options, bits)
        counts = [h.tasks for h in headers]
        if batch is not None:
            reg.check_call(learner, batch, sum(counts))
        queries = max(h.queries for h in headers)
        uneven = len({h.queries for h in headers if h.tasks}) > 1
        masked = uneven or any(h.masked for h in headers)
        related = reg.lam != 0 and sum(counts) > 1
        if related and reg.queries < 1:
            self._agree_on_generator(ranks, headers)
        keys = reg.query_keys(sum(counts), queries) if related else None
        if batch is not None and masked:
            batch = batch.replace(batch.support, _padded(batch.query, queries))
        return Plan(batch, counts, queries, masked, related, keys)

    def _check(self, batch: TaskBatch | None) -> None:
        learner, reg = self.learner, self.regularizer
        reg.check_options()
        check_lazy(learner, reg)
        if learner.engine in compiled.NAMES:
            raise ValueError(
                f"engine={learner.engine!r} makes one graph of a whole meta-step, which cannot wait for "
                "other ranks. Use engine='batched', 'loop' or 'auto' with several processes."
            )
        if batch is not None:
            reg.check_call(learner, batch, tasks=3)
        if reg.monitor is not None:
            reg._warn(
                "reg.monitor is not shown the steps of several processes. On one rank, give "
                "it reg(learner, batch) of some tasks now and then."
            )

    def _agree_on_generator(self, ranks: Ranks, headers: list[Header]) -> None:
        """Rank 0's random state is everybody's at the start, and must stay so."""
        alike = len({h.generator for h in headers}) == 1
        if not alike and self._one_generator:
            raise ValueError(
                "reg.generator must stand alike on all ranks, for it chooses the queries, but it was "
                "used or loaded on some ranks only. Load the same checkpoint on every rank, and draw "
                "nothing else from it."
            )
        if not alike:
            told = agreement.tell(ranks, self.regularizer.generator.get_state().cpu())
            self.regularizer.generator.set_state(told[0])
        self._one_generator = True


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step is about, on all ranks alike but for `batch`.

    Attributes:
        batch: This rank's tasks, with as many queries as any rank's.
        counts: How many tasks each rank has.
        queries: How many each task has, padding included.
        masked: Whether queries have a mask.
        related: Whether there is a relation term.
        keys: What queries are chosen by ``[tasks, queries]``; ``None`` for all.
    """

    batch: TaskBatch | None
    counts: list[int]
    queries: int
    masked: bool
    related: bool
    keys: Tensor | None


AGREED = (
    "predictions",
    "embeddings",
    "features of queries",
    "class prototypes",
    "masks",
    "choices of queries",
    "mixture",
    "ways",
)


@dataclass(frozen=True, eq=False)
class _Local:
    """What a rank found by itself."""

    engine: Engine
    fast: Fast
    predictions: Tensor
    loss: Tensor  # the sum over its tasks
    chosen: Samples
    asked: Asked | None


class _Step:
    """One step on one rank."""

    def __init__(
        self, ranks: Ranks, learner: Learner, regularizer: TRLearner, plan: Plan, fill: bool
    ) -> None:
        self.ranks, self.learner, self.reg, self.plan = ranks, learner, regularizer, plan
        self.device = regularizer.relation.weight.device
        self.now: State = {}
        self.zero: Tensor | None = None
        trained = {n: p for n, p in _parameters(learner, regularizer).items() if p.requires_grad}
        self.gated: dict[str, Tensor] = {}
        if torch.is_grad_enabled() and trained:
            self.zero, same = gate(list(trained.values()), fill)
            self.gated = dict(zip(trained, same, strict=True))
        if fill:
            size = sum(p.numel() * p.element_size() for p in trained.values())
            share = 2 * (ranks.size - 1) * size // ranks.size
            counted().add("gradients (by DDP)", share, share)

    def run(self, scale: float) -> Output:
        plan, local, error = self.plan, None, None
        try:
            self.now = self.state()
            local = None if plan.batch is None else self.alone(plan.batch, self.now)
        except Exception as raised:  # told to the others, so that they do not wait
            error = raised
        kinds, facts = self.agreed(local, error is not None)
        if error is not None:
            raise error
        found = self.together(local, kinds, facts) if plan.related else None
        return self.output(local, found, kinds, scale)

    def state(self) -> dict[str, Tensor]:
        learner, reg, batch = self.learner, self.reg, self.plan.batch
        state = learner.state() | state_of_loss(reg.loss_fn)
        if self.plan.related and batch is None:
            state |= {PREFIX + name: t for name, t in tensors(reg).items()}
        elif self.plan.related and batch is not None:
            state |= reg.prepared(learner, batch)
        return {name: self.gated.get(name, t) for name, t in state.items()}

    def alone(self, batch: TaskBatch, state: State) -> _Local:
        learner, reg, plan = self.learner, self.reg, self.plan
        support, query = batch.support, batch.query
        engine = learner.check(support, reg.loss_fn, query)
        if engine.name in compiled.NAMES:  # "auto" that has settled for it
            engine = ENGINES["batched"]
        loss_fn = loss_in(reg.loss_fn, state)
        features = engine.embed(learner, state, support.x, support.mask)
        fast = engine.adapt(learner, state, features, support, loss_fn, learner.steps)
        features = engine.embed(learner, state, query.x, query.mask)
        predictions = engine.predict(learner, state, fast, features, query.mask)
        loss = engine.loss(loss_fn, predictions, query.y, query.mask).sum()
        if not plan.related:
            return _Local(engine, fast, predictions, loss, query, None)
        chosen, choice = query, None
        if plan.keys is not None:
            first = sum(plan.counts[: self.ranks.rank])
            choice = reg.choose_queries(plan.keys[first : first + len(batch)], query)
            chosen = query.choose(choice)
        late = choice is not None and learner.couples_samples()
        asked = Asked(
            embed_tasks(reg.encoder, engine, learner, state, batch, fast),
            features if choice is None or late else take(features, choice),
            self.prototypes(batch, state),
            query.mask if late else chosen.mask,
            choice if late else None,
        )
        return _Local(engine, fast, predictions, loss, chosen, asked)

    def prototypes(self, batch: TaskBatch, state: State) -> Tensor | None:
        if self.reg.align == "none":
            return None
        assert isinstance(self.reg.encoder, HasPrototypes)  # checked with the options
        return self.reg.encoder.prototypes(self.learner, state, batch)

    def agreed(self, local: _Local | None, failed: bool) -> tuple[list[Kind | None], list[int]]:
        """Outputs, embeddings, features, prototypes, mask, choice; whether logits are mixed, and ways."""
        kinds: list[Kind | None] = [None] * 6
        facts = [0, 0]
        if local is not None and self.plan.batch is not None:
            batch, query = self.plan.batch, self.plan.batch.query
            kinds[0] = Kind(tuple(local.predictions.shape[2:]), local.predictions.dtype, False)
            if local.asked is not None:
                kinds[1:] = [_kind(t) for t in vars(local.asked).values()]
            logits = mixture_kind(self.reg.mixture, query.y, "sum") == "logits"
            facts = [int(logits), batch.ways or 0]
        return agreement.agree(self.ranks, self.plan.counts, failed, kinds, facts, AGREED)

    def together(self, local: _Local | None, kinds: list[Kind | None], facts: list[int]) -> Found:
        outputs, embeddings, features, prototypes, _, _ = kinds
        assert outputs is not None and embeddings is not None and features is not None
        asked = None if local is None else local.asked
        if asked is None:
            empty = [None if k is None else self.empty(k) for k in kinds[1:]]
            asked = Asked(*empty)  # type: ignore[arg-type]
        chosen = math.ceil(self.reg.queries * self.plan.queries)
        return relate_ranks(
            self.reg,
            self.ranks,
            self.plan.counts,
            None if local is None else local.engine,
            self.learner,
            self.now,
            {} if local is None else local.fast,
            asked,
            (prototypes is not None and prototypes.graded, features.graded),
            outputs._replace(shape=(chosen, *outputs.shape)),
            "logits" if facts[0] else "values",
            self.reg.temperature,
        )

    def empty(self, kind: Kind) -> Tensor:
        return torch.zeros(0, *kind.shape, dtype=kind.dtype, device=self.device)

    def output(
        self, local: _Local | None, found: Found | None, kinds: list[Kind | None], scale: float
    ) -> Output:
        total, reg = sum(self.plan.counts), self.reg
        assert kinds[0] is not None
        own = self.empty(kinds[0]).sum() if local is None else local.loss
        related = torch.zeros_like(own)
        if found is not None:
            related = found.mixtures.sum()  # of nothing, on a rank without tasks
            if local is not None:
                loss_fn, chosen = loss_in(reg.loss_fn, self.now), local.chosen
                losses = local.engine.loss(loss_fn, found.mixtures, chosen.y, chosen.mask)
                related = losses.sum()
        mine = own / total + (reg.lam * related / total if found is not None else 0)
        mine = mine if self.zero is None else mine + self.zero
        sure = None if found is None else found.confidence
        sums = self.sums(own, related, sure) / total
        task_loss, relation_loss = sums[0].to(own.dtype), sums[1].to(own.dtype)
        whole = task_loss + reg.lam * relation_loss if found is not None else task_loss
        loss = share(mine, whole.to(mine.dtype), scale) if mine.requires_grad else whole
        predictions = (
            self.empty(kinds[0]._replace(shape=(self.plan.queries, *kinds[0].shape)))
            if local is None
            else local.predictions.detach()
        )
        out = Output(
            loss, task_loss, relation_loss, predictions, local.engine.name if local else "idle"
        )
        if found is None:
            return out
        return replace(
            out,
            relations=found.relations.detach(),
            weights=found.weights.detach(),
            embeddings=found.embeddings.detach(),
            alignment_confidence=None if sure is None else (sums[2] / (total - 1)).to(own.dtype),
        )

    def sums(self, *values: Tensor | None) -> Tensor:
        """Sums over ranks, in their order, so that all ranks have the same bits."""
        row = torch.stack(
            [
                torch.zeros((), dtype=torch.float64, device=self.device)
                if v is None
                else v.detach().double().to(self.device)
                for v in values
            ]
        )[None]
        return gather_rows(self.ranks, row, [1] * self.ranks.size, "losses").sum(0)


def check_lazy(learner: Learner, regularizer: TRLearner) -> None:
    """Refuse parameters without a shape: each rank would draw its own, and one without tasks none.

    Raises:
        ValueError: Naming them.
    """
    lazy = [n for n, p in _parameters(learner, regularizer).items() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"parameters {lazy} have no shape yet, but must be the same on all ranks from the start. "
            "Give the widths, e.g. tr.LabelledEncoder(extractor, dim=64, features=40, targets=1) (for "
            "class labels targets=1 will do), or call reg(learner, batch) once before."
        )


def _parameters(learner: nn.Module, regularizer: nn.Module) -> dict[str, Tensor]:
    """All parameters, by their names in the state."""
    found: dict[str, Tensor] = dict(learner.named_parameters())
    return found | {PREFIX + n: p for n, p in regularizer.named_parameters()}


def _check_launch() -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size.isdigit() and int(size) > 1:
        raise ValueError(
            f"there is no process group, but WORLD_SIZE={size} says that this is one of {size} processes, "
            "each of which would train alone. Call torch.distributed.init_process_group('gloo') first "
            "('nccl' on GPUs)."
        )


def _padded(query: Samples, queries: int) -> Samples:
    mask = query.mask
    if mask is None:
        mask = torch.ones(query.x.shape[:2], dtype=torch.bool, device=query.x.device)
    return Samples.unchecked(query.x, query.y, mask, query.ways).padded(queries)


def _kind(tensor: Any) -> Kind | None:
    if tensor is None:
        return None
    return Kind(tuple(tensor.shape[1:]), tensor.dtype, tensor.requires_grad)
