"""Counted bytes of a meta-step on two ranks, and those that the kernel saw on a loopback device of its own.

``unshare -rn sh -c "ip link set lo up && python -m trlearner.experiments.bench.wire"``
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from trlearner.experiments.bench.scaling import Traffic, made, meeting

import trlearner as tr
from trlearner.distributed import broadcast, own_tasks, sync_gradients

SIZES = ((40, 10), (400, 10), (1000, 2000))  # hidden units, queries a task
TASKS, STEPS = 4, 20


def seen_by_kernel() -> int:
    """Bytes received on the loopback device, packet headers included."""
    rows = Path("/proc/net/dev").read_text().splitlines()
    (row,) = (row for row in rows if row.strip().startswith("lo:"))
    return int(row.split()[1])


def one(hidden: int, queries: int) -> tuple[int, int]:
    """Bytes of a step, of both ranks together: counted, and seen by the kernel."""
    torch.manual_seed(0)
    learner, reg = made(hidden, 1.0)
    broadcast(learner, reg)
    x = torch.rand(TASKS, 5 + queries, 1)
    share = own_tasks(tr.TaskBatch(support=(x[:, :5], x[:, :5]), query=(x[:, 5:], x[:, 5:])))
    step = tr.MetaStep(learner, reg)

    def steps(number: int) -> None:
        for _ in range(number):
            step(share).loss.backward()
            sync_gradients(learner, reg)

    steps(1)
    with Traffic() as traffic:
        steps(1)
    before = seen_when_quiet()
    steps(STEPS)
    after = seen_when_quiet()
    dist.barrier()
    counted: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counted, traffic.sent.total())
    return sum(counted), (after - before) // STEPS


def seen_when_quiet() -> int:
    """What the kernel saw, once everything that was on its way has arrived."""
    dist.barrier()
    time.sleep(0.5)
    return seen_by_kernel()


def work(rank: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for hidden, queries in SIZES:
        counted, seen = one(hidden, queries)
        if rank == 0:
            words = f"{hidden:>5} hidden units, {queries:>5} queries: counted {counted:>9,} bytes a step"
            print(f"{words}, the kernel saw {seen:>9,}, {seen / counted - 1:.1%} more", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, args=(meeting(),), nprocs=2)  # type: ignore[no-untyped-call]
