"""What a step is about, once all ranks have been found to agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trlearner.distributed import agreement
from trlearner.distributed.agreement import Header
from trlearner.distributed.check import check_call
from trlearner.distributed.collective import Ranks
from trlearner.learners.protocol import Learner
from trlearner.regularizer.regularizer import TRLearner
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.queries import query_keys
from trlearner.tasks.samples import Samples


@dataclass(frozen=True, eq=False)
class Plan:
    """The same on all ranks but for `batch`.

    Attributes:
        batch: This rank's tasks, with as many queries as any rank's.
        counts: How many tasks each rank has.
        queries: How many each task has, padding included.
        related: Whether there is a relation term.
        keys: What queries are chosen by ``[tasks, queries]``; ``None`` for all.
    """

    batch: TaskBatch | None
    counts: list[int]
    queries: int
    related: bool
    keys: Tensor | None


def make_plan(
    ranks: Ranks,
    learner: Learner,
    reg: TRLearner,
    batch: TaskBatch | None,
    steps: int,
    compare: bool,
) -> Plan:
    """Exchanges headers, and refuses to go on with ranks that do not fit together.

    Args:
        ranks: Who shares the tasks.
        learner: Adapts.
        reg: Relates.
        batch: This rank's tasks.
        steps: How many meta-steps were taken before.
        compare: Whether to compare all parameters' bits.

    Raises:
        ValueError: Naming what does not fit, or differs between ranks.
        LostRank: Another rank has failed.
    """
    options: dict[str, str] = {}
    bits: dict[str, int] = {}
    header, error = Header(failed=1), None
    try:
        check_call(learner, reg, batch)
        options = agreement.options_of(learner, reg, steps) | {"check": str(compare)}
        if compare:
            bits = agreement.fingerprints(agreement.parameters_of(learner, reg))
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
    queries = max(h.queries for h in headers)
    uneven = len({h.queries for h in headers if h.tasks}) > 1
    if batch is not None and (uneven or any(h.masked for h in headers)):
        batch = batch.replace(batch.support, _padded(batch.query, queries))
    related = reg.lam != 0 and sum(counts) > 1
    if related and reg.options.queries < 1:
        _follow_first(ranks, reg, headers)
    keys = query_keys(reg.options.queries, sum(counts), queries, reg.generator) if related else None
    return Plan(batch, counts, queries, related, keys)


def _follow_first(ranks: Ranks, reg: TRLearner, headers: Sequence[Header]) -> None:
    """Rank 0's random state is everybody's."""
    if len({h.generator for h in headers}) > 1:
        reg.generator.set_state(agreement.tell(ranks, reg.generator.get_state().cpu())[0])


def _padded(query: Samples, queries: int) -> Samples:
    return Samples.unchecked(query.x, query.y, query.is_real(), query.ways).padded(queries)
