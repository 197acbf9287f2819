"""Ranks that do not fit together are told what differs and what to do."""

from __future__ import annotations

import re
import warnings

import contracts
import pytest
import torch
from rank_problem import made
from ranks import Case, Failed, Ranks
from torch.nn.parallel import DistributedDataParallel

import trlearner as tr
from trlearner.distributed import own_tasks, sync_gradients


def other_options(rank: int, size: int) -> None:
    step, batch = made(lam=0.1 + rank, heads=3 + rank)
    step(batch)


def other_check(rank: int, size: int) -> None:
    step, batch = made()
    step.check = rank == 0
    step(batch)


def other_shapes(rank: int, size: int) -> None:
    step, batch = made()
    if rank:
        x = torch.zeros(2, 4, 2, 1, dtype=torch.float64)
        query = tr.Samples(x.expand(2, 4, 2, 2), torch.zeros(2, 4, 2, 3, dtype=torch.float64))
        support = tr.Samples(query.x, query.y)
        batch = tr.TaskBatch(support=support, query=query)
    step.regularizer.encoder = tr.UpdateEncoder(dim=contracts.HIDDEN)
    step(batch)


def other_weights(step: tr.MetaStep, rank: int) -> None:
    with torch.no_grad():
        step.learner.model.body.weight += rank


def other_start(rank: int, size: int) -> None:
    step, batch = made()
    other_weights(step, rank)
    step(batch)


def other_later(rank: int, size: int) -> None:
    """Compared at the first step, and then when it is asked for."""
    step, batch = made()
    step(batch)
    other_weights(step, rank)
    step(batch)
    step.check = True
    step(batch)


def around_ddp(rank: int, size: int) -> None:
    step, batch = made()
    step.check = True
    ddp = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    if rank:
        batch = contracts.regression_batch(seed=9)[:2]
    for _ in range(2):
        ddp.module(batch).loss.backward()
        optimizer.step()


def compiled(rank: int, size: int) -> None:
    step, batch = made()
    step.learner.engine = "compiled"
    step(batch)


def lazy(rank: int, size: int) -> None:
    step, _ = made()
    tr.MetaStep(step.learner, tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=4)))


def nothing(rank: int, size: int) -> None:
    step, _ = made()
    step(None)


def fewer_tasks_than_ranks(rank: int, size: int) -> None:
    own_tasks(contracts.regression_batch(tasks=1))


def twice_summed(rank: int, size: int) -> None:
    step, batch = made()
    ddp = DistributedDataParallel(step)
    ddp(batch).loss.backward()
    sync_gradients(step.learner, step.regularizer)


def watched(rank: int, size: int) -> None:
    step, batch = made()
    step.regularizer.monitor = lambda *a: None
    step(batch)


def static_graph(rank: int, size: int) -> None:
    step, batch = made()
    DistributedDataParallel(step, static_graph=True)(batch)


def sampled(rank: int, size: int) -> None:
    step, batch = made(sampler=tr.samplers.UniformTaskSampler(range(4), batch_size=2))
    step(batch)


def untouched(rank: int, size: int) -> None:
    """A change between forward and backward is an error, not a wrong gradient."""
    step, batch = made()
    loss = step(batch).loss
    with torch.no_grad():
        step.learner.model.head.weight += 1
    loss.backward()


ERRORS = {
    other_options: (
        "ValueError",
        r"(?s)alike on all ranks.*\n  lam: 0.1 on rank 0, 1.1 on rank 1\n",
    ),
    other_check: ("ValueError", r"\n  check: True on rank 0, False on rank 1\n"),
    other_shapes: (
        "ValueError",
        r"predictions must be alike.*\[3\] of torch.float64 on rank 0, \[2, 3\] of",
    ),
    other_start: ("ValueError", r"1 of 5 differ, first 'model.body.weight'. At the start: wrap"),
    other_later: ("ValueError", r"1 of 5 differ, first 'model.body.weight'.* Later on, gradients"),
    around_ddp: ("ValueError", r"gradients were not summed: call ddp\(batch\), never ddp.module"),
    compiled: ("ValueError", r"engine='compiled' makes one graph.* Use engine='batched', 'loop'"),
    lazy: ("ValueError", r"no shape yet.* Give the widths"),
    nothing: (
        "ValueError",
        r"every rank must have at least one task, got batch=None. Use meta-bat",
    ),
    fewer_tasks_than_ranks: (
        "ValueError",
        r"one task for each rank, got 1 for 2 ranks. Use meta-batches of at least 2 tasks, or start 1",
    ),
    twice_summed: (
        "ValueError",
        r"already brought these gradients together.* Leave sync_gradients",
    ),
    watched: ("UserWarning", r"reg.monitor is not shown the steps of several processes"),
    sampled: (
        "ValueError",
        r"sampler must be None with several processes, got Uniform.* draw its tasks with a sampler of",
    ),
    static_graph: (
        "ValueError",
        "static_graph must be left out, got True.* needs neither that nor",
    ),
    untouched: ("RuntimeError", r"modified by an inplace operation"),
}


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.__name__)
def test_errors_name_what_came_and_what_to_do(two: Ranks, case: Case) -> None:
    kind, text = ERRORS[case]
    for found in two(case):
        assert isinstance(found, Failed), found
        assert found.kind == kind, found.trace
        assert re.search(text, found.text), found.text


def test_an_option_of_the_first_step_is_named_too(two: Ranks) -> None:
    text = two(other_options)[0].text
    assert "regularizer.relation.weight: [3, 5] of torch.float64 on rank 0, [4, 5]" in text


def one_watches(rank: int, size: int) -> float:
    """TensorBoard is written by one rank."""
    step, batch = made()
    if rank == 0:
        step.regularizer.monitor = object()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loss = float(step(batch).loss)
    assert any("reg.monitor is not shown" in str(w.message) for w in told) == (rank == 0)
    return loss


def test_one_rank_may_watch(two: Ranks) -> None:
    found = two(one_watches)
    assert not isinstance(found[0], Failed), found[0].trace
    assert len(set(found)) == 1


def one_fails(rank: int, size: int) -> None:
    step, batch = made()
    if rank:

        def broken(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (predictions - targets).square()

        broken.__qualname__ = step.regularizer.loss_fn.__qualname__
        step.regularizer.loss_fn = broken
    step(batch)


def one_misuses(rank: int, size: int) -> None:
    step, batch = made()
    step("tasks" if rank else batch)


def test_an_error_of_one_rank_reaches_the_others_at_once(two: Ranks) -> None:
    misuse, failure = two(one_misuses), two(one_fails)
    assert (misuse[1].kind, misuse[0].kind) == ("TypeError", "LostRank")
    assert (failure[1].kind, failure[0].kind) == ("ValueError", "LostRank")
    assert "rank 0 of 2: rank 1 raised an error in this step" in failure[0].text
    assert "loss_fn must return a scalar" in failure[1].text


@pytest.mark.unchecked
def test_its_parts_are_checked() -> None:
    step, _ = made()
    with pytest.raises(
        TypeError, match=r"(?s)regularizer must be a TRLearner, got MAML.*learner first"
    ):
        tr.MetaStep(step.regularizer, step.learner)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"learner must be a trlearner Learner.*got Linear"):
        tr.MetaStep(torch.nn.Linear(1, 1), step.regularizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be 'auto', 'mean' or 'sum', got 'max'"):
        tr.MetaStep(step.learner, step.regularizer, reduction="max")  # type: ignore[arg-type]
