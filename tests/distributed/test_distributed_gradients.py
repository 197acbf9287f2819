"""Gradients of several processes are brought together once."""

from __future__ import annotations

import copy

import contracts
import torch
from rank_problem import EXACT, made
from ranks import Ranks
from torch.nn.parallel import DistributedDataParallel

import trlearner as tr
from trlearner.distributed import broadcast, own_tasks, sync_gradients


def accumulated(rank: int, size: int) -> dict[str, float]:
    """Two meta-batches, one optimizer step: gradients are summed once."""
    off = {}
    for how in ("ddp", "own"):
        step, _ = made()
        learner, reg = copy.deepcopy((step.learner, step.regularizer))
        batches = [contracts.regression_batch(seed=s) for s in (1, 2)]
        if how == "ddp":
            ddp = DistributedDataParallel(step)
            with ddp.no_sync():
                ddp(own_tasks(batches[0])).loss.backward()
            ddp(own_tasks(batches[1])).loss.backward()
        else:
            for batch in batches:
                step(own_tasks(batch)).loss.backward()
            sync_gradients(step.learner, step.regularizer)
        for batch in batches:
            reg(learner, batch).loss.backward()
        pairs = zip(step.parameters(), tr.MetaStep(learner, reg).parameters(), strict=True)
        off[how] = max((p.grad - q.grad).abs().max().item() for p, q in pairs)
    return off


def test_gradients_are_accumulated_without_being_summed_twice(two: Ranks) -> None:
    for off in two(accumulated):
        assert max(off.values()) <= EXACT


def unused_anywhere(rank: int, size: int) -> tuple[bool, bool]:
    """Without DDP a parameter that no rank uses has no gradient, as on one rank."""
    step, batch = made(lam=0.0)
    step(batch).loss.backward()
    sync_gradients(step.learner, step.regularizer)
    weight = step.learner.model.body.weight
    return step.regularizer.relation.weight.grad is None, bool(weight.grad.any())


def test_a_parameter_that_nobody_uses_has_no_gradient(two: Ranks) -> None:
    assert two(unused_anywhere) == [(True, True)] * 2


def broadcast_start(rank: int, size: int) -> bool:
    step, batch = made()
    with torch.no_grad():
        step.learner.model.body.weight += rank
    before = step.learner.model.body.weight.clone()
    broadcast(step.learner, step.regularizer)
    step(batch)
    return torch.equal(before, step.learner.model.body.weight) == (rank == 0)


def test_parameters_can_be_made_alike(two: Ranks) -> None:
    assert two(broadcast_start) == [True, True]


def drawn_by_each_rank(rank: int, size: int) -> tuple[int, int, list[torch.Tensor]]:
    """A sampler of its own on every rank, as the refusal of `sampler=` says."""
    step, _ = made()
    ddp = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    pool = contracts.regression_batch(seed=rank, tasks=6)
    sampler = tr.AdaptiveTaskSampler(range(6), batch_size=3, warmup=0, every=1, batches=4)
    for ids in sampler:
        share = pool[ids].replace(pool[ids].support, pool[ids].query, tuple(ids))
        optimizer.zero_grad()
        ddp(share).loss.backward()
        sampler.update(step.learner, share)
        optimizer.step()
    looked_at = int(sampler.state_dict()["board"]["known"].sum())
    return sampler.updates, looked_at, [p.detach() for p in step.parameters()]


def test_each_rank_may_draw_with_a_sampler_of_its_own(two: Ranks) -> None:
    (updates, looked_at, first), (_, _, other) = two(drawn_by_each_rank)
    assert updates == 4 and looked_at >= 3
    assert all(map(torch.equal, first, other))
