"""What several processes cost: measured here, and a model fitted to it.

``python -m trlearner.experiments.bench.scaling --out experiments/results/distributed/loopback.json``

The model of one meta-step on W ranks with T tasks, of which the fullest rank has t = ceil(T / W):

    seconds = [ a * P * t + c * P * t * T * q + o ] * max(1, W / cores) + n * W' * latency + bytes / bandwidth

P is the number of parameters in thousands, q the share of the queries, bytes what `Traffic` counts, W' =
W - 1 and n the number of collectives. a, c, o, latency and 1 / bandwidth are fitted, none below zero.

``--say loopback.json`` prints what the model says of other numbers of devices. It measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import socket
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from trlearner.experiments.data.files import write_json

import trlearner as tr
from trlearner.distributed import broadcast, own_tasks, sync_gradients

SIZES = [
    {"tasks": tasks, "hidden": hidden, "queries": queries}
    for tasks in (4, 16, 32)
    for hidden, queries in ((40, 1.0), (40, 0.3), (160, 0.3), (400, 0.3))
]
DIM = 32  # of an embedding
HEADERS = 96
"""Bytes of whole numbers and losses that each rank gives to each other one at a step."""
TERMS = ("adapt", "cross", "latency", "per byte", "overhead")


class Traffic(TorchDispatchMode):
    """Collectives that are run while it is open, and the bytes of payload that this rank sends by them.

    What one rank needs of another is counted once, as if it went straight there: a gathered row once
    for each other rank, a sum of n bytes over W ranks as 2 (W - 1) / W n. Headers of packets, and what
    a backend's algorithm sends more than once, are not in it. DDP's own collectives are not seen.

    Attributes:
        calls: How many there were of each kind.
        sent: Bytes of each kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, name = func.name().split("::")
        if namespace == "_c10d_functional" and name != "wait_tensor":
            others, rows = dist.get_world_size() - 1, args[0]
            size = rows.numel() * rows.element_size()
            if name == "all_gather_into_tensor":
                size *= others
            elif name == "all_reduce":
                size = 2 * others * size // (others + 1)
            else:
                to = args[2]  # how many rows go to each rank
                size = size // max(1, sum(to)) * (sum(to) - to[dist.get_rank()])
            self.calls[name] += 1
            self.sent[name] += size
        return func(*args, **(kwargs or {}))


def network(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )


def made(hidden: int, queries: float) -> tuple[tr.MAML, tr.TRLearner]:
    learner = tr.MAML(network(hidden), lr=0.01, steps=5, engine="batched")
    encoder = tr.LabelledEncoder(None, dim=DIM, features=1, targets=1)
    return learner, tr.TRLearner(encoder=encoder, queries=queries)


def numbers_of(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def one(size: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Times one size on all ranks; the median step of the slowest rank, in seconds."""
    torch.manual_seed(0)
    learner, reg = made(size["hidden"], size["queries"])
    broadcast(learner, reg)
    x = 10 * torch.rand(size["tasks"], 15, 1) - 5
    y = torch.sin(x + torch.rand(size["tasks"], 1, 1))
    share = own_tasks(tr.TaskBatch(support=(x[:, :5], y[:, :5]), query=(x[:, 5:], y[:, 5:])))
    step, seconds = tr.MetaStep(learner, reg), []

    def once() -> None:
        learner.zero_grad()
        reg.zero_grad()
        step(share).loss.backward()
        sync_gradients(learner, reg)

    once()
    with Traffic() as traffic:
        once()
    for _ in range(repeats):
        dist.barrier()
        started = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - started)
    told: list[Any] = [None] * dist.get_world_size()
    counted = traffic.sent.total(), traffic.calls.total()
    dist.all_gather_object(told, (statistics.median(seconds), min(seconds), *counted))
    return {
        **size,
        "ranks": dist.get_world_size(),
        "parameters": numbers_of(learner),
        "seconds": max(t[0] for t in told),
        "fastest": max(t[1] for t in told),
        "bytes": max(t[2] for t in told),
        "calls": told[0][3],
    }


def meeting() -> str:
    """Where ranks of this machine meet."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def work(rank: int, size: int, address: str, repeats: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    rows = [one(s, repeats) for s in SIZES]
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    dist.destroy_process_group()


def features(row: dict[str, Any], cores: int) -> list[float]:
    """What each fitted number is multiplied with."""
    ranks, tasks = row["ranks"], row["tasks"]
    most, crowd = math.ceil(tasks / ranks), max(1.0, ranks / cores)
    weight = row["parameters"] / 1000
    return [
        weight * most * crowd,
        weight * most * tasks * row["queries"] * crowd,
        float(row["calls"] * (ranks - 1)),
        float(row["bytes"]),
        crowd,
    ]


def fit(rows: list[dict[str, Any]], cores: int) -> NDArray[np.float64]:
    """Least squares of relative errors, none of the numbers below zero."""
    from scipy.optimize import nnls

    a = np.array([features(row, cores) for row in rows])
    y = np.array([row["seconds"] for row in rows])
    scale = (a / y[:, None]).max(0)
    found, _ = nnls(a / y[:, None] / scale, np.ones(len(y)))
    return np.asarray(found / scale)


def step_bytes(
    ranks: int,
    tasks: int,
    parameters: int,
    embedding: int,
    queries: int,
    mixture: int,
    headers: int = HEADERS,
) -> int:
    """What the fullest rank sends in one step of MAML.

    Args:
        ranks: How many.
        tasks: In all.
        parameters: Bytes of all parameters, the regularizer's included.
        embedding: Bytes of a task's.
        queries: Bytes of the inputs of a task's chosen queries.
        mixture: Bytes of what is said of these.
        headers: Bytes of headers and losses; without DDP there is one more for each parameter tensor.
    """
    most = math.ceil(tasks / ranks)
    forth = (ranks - 1) * most * (embedding + queries) + (tasks - most) * mixture
    back = (tasks - most) * embedding + (ranks - 1) * most * mixture
    told = (ranks - 1) * headers
    return told + forth + back + 2 * (ranks - 1) * parameters // ranks


def say(path: Path, latency: float = 50e-6, bandwidth: float = 10e9) -> None:
    """What the model says where nothing was measured.

    Assumed: each device computes like a core here; a collective takes `latency` times log2(W) whatever its
    size, plus its bytes over `bandwidth`; no rank waits for a slower one; top_k costs its share of the pairs.
    """
    fitted = json.loads(path.read_text())["fitted"]
    queries, calls = 0.3, 9
    learner, reg = made(400, queries)
    parameters = numbers_of(learner)
    print(f"a MODEL's statement, not a measurement: {parameters} parameters, 4 tasks a rank")
    for ranks in (1, 8, 512):
        for top_k in (None, 8):
            tasks = 4 * ranks
            asked = tasks if top_k is None else min(top_k, tasks - 1)
            weight = parameters / 1000
            compute = fitted["overhead"] + 4 * weight * fitted["adapt"]
            cross = 4 * weight * asked * queries * fitted["cross"]
            sent = step_bytes(
                ranks, tasks, 4 * numbers_of(learner, reg), 4 * DIM, 4 * 3, 4 * 3
            )  # float32, and 3 of 10 queries of one input and one output
            wire = calls * latency * math.log2(ranks) + sent / bandwidth
            print(
                f"{ranks:>4} devices, {tasks:>5} tasks, top_k={top_k!s:>4}: adapt {compute:.4f} s, cross "
                f"{cross:.4f} s, wire {wire:.4f} s ({sent / 1e6:.2f} MB a rank)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--say", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    options = parser.parse_args()
    if options.say:
        say(options.say)
        return
    rows: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for size in options.ranks:
        part = options.out.with_suffix(".part")
        ranks = (size, meeting(), options.repeats, str(part))
        mp.spawn(work, args=ranks, nprocs=size)  # type: ignore[no-untyped-call]
        rows += json.loads(part.read_text())
        part.unlink()
    cores = len(os.sched_getaffinity(0))
    numbers = fit(rows, cores)
    for row in rows:
        row["model"] = float(np.dot(features(row, cores), numbers))
        words = (
            "{ranks:>5} ranks {tasks:>4} tasks {parameters:>8} parameters, queries {queries:.1f}: "
        )
        print((words + "{seconds:.4f} s, model {model:.4f} s, {bytes:>9} bytes").format(**row))
    off = [abs(row["model"] / row["seconds"] - 1) for row in rows]
    fitted = dict(zip(TERMS, map(float, numbers), strict=True))
    print(
        fitted, f"model off by {statistics.median(off):.0%} in the median, {max(off):.0%} at most"
    )
    record = {
        "command": "python -m trlearner.experiments.bench.scaling",
        "machine": platform.system(),
        "cores": cores,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "rows": rows,
        "fitted": fitted,
        "median error": statistics.median(off),
        "largest error": max(off),
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()
