"""Real processes, and what every rank of them does: for tests/test_distributed.py."""

from __future__ import annotations

import copy
import datetime
import os
import pathlib
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, os.path.dirname(__file__))

import contracts
import trlearner as tr
from trlearner.distributed import guarded, own_tasks, sync_gradients

Case = Callable[[int, int], Any]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def join(rank: int, size: int, port: int, timeout: float = 60.0) -> None:
    """Makes this process a rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*neighbour")
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )


def _work(rank: int, size: int, port: int, cases: dict[str, Case], out: str) -> None:
    join(rank, size, port)
    found: dict[str, Any] = {}
    for name, case in cases.items():
        try:
            found[name] = case(rank, size)
        except Exception as error:  # looked at by the test of this case
            found[name] = Failed(type(error).__name__, str(error), traceback.format_exc())
        dist.barrier()
    torch.save(found, pathlib.Path(out) / f"{rank}.pt")
    dist.destroy_process_group()


@dataclass
class Failed:
    """An error that a case raised."""

    kind: str
    text: str
    trace: str


def run(size: int, cases: dict[str, Case], out: pathlib.Path) -> list[dict[str, Any]]:
    """What each rank found, by case."""
    mp.spawn(_work, args=(size, free_port(), cases, str(out)), nprocs=size)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(size)]


class Normed(nn.Module):
    """head(tanh(norm(body(x)))), whose samples see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(contracts.INPUTS, contracts.HIDDEN)
        self.norm = nn.BatchNorm1d(contracts.HIDDEN)
        self.head = nn.Linear(contracts.HIDDEN, contracts.OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.body(x))))


@dataclass
class Problem:
    """A meta-step, with its tasks dealt out to ranks."""

    counts: Sequence[int]
    learner: str = "maml"
    engine: str = "batched"
    kind: str = "regression"  # or "classes"
    encoder: str = "input"  # or "labelled", "update", "function"
    sizes: str = "equal"  # or "unequal": tasks differ, "queries": ranks do
    norm: bool = False
    ddp: bool = False
    find_unused: bool = False
    learner_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def made(self) -> tuple[tr.Learner, tr.TRLearner]:
        torch.manual_seed(self.seed)
        model = Normed().double() if self.norm else contracts.net()
        learner = contracts.learner(self.learner, model, self.engine, **self.learner_options)
        encoder: tr.Encoder
        if self.encoder == "input":
            encoder = tr.InputEncoder(model.body, dim=contracts.HIDDEN, metadata="all")
        elif self.encoder == "labelled":
            encoder = tr.LabelledEncoder(
                model.body, dim=4, features=contracts.HIDDEN, targets=contracts.OUTPUTS
            )
        elif self.encoder == "update":
            encoder = tr.UpdateEncoder(dim=16)
        else:
            probe = torch.linspace(-1, 1, 4 * contracts.INPUTS, dtype=torch.float64)
            encoder = tr.FunctionEncoder(probe.reshape(4, -1), outputs=contracts.OUTPUTS)
        loss = contracts.cross_entropy if self.kind == "classes" else nn.functional.mse_loss
        options = {"loss_fn": loss, "lam": 0.7, "heads": 3, **self.options}
        reg = tr.TRLearner(
            encoder=encoder, generator=torch.Generator().manual_seed(5), **options
        ).double()
        return learner, reg

    def batch(self, tasks: slice) -> tr.TaskBatch | None:
        """Some of all tasks, padded no more than these need."""
        total = sum(self.counts)
        make = contracts.class_batch if self.kind == "classes" else contracts.regression_batch
        whole = make(seed=3, tasks=total)
        rows, ranks = [], [r for r, n in enumerate(self.counts) for _ in range(n)]
        for i, (support, query) in enumerate(contracts.tasks_of(whole)):
            cut = {"equal": (0, 0), "unequal": (i % 3, (2 * i) % 4), "queries": (0, ranks[i])}
            s, q = cut[self.sizes]
            rows.append(
                (tuple(t[: len(t) - s] for t in support), tuple(t[: len(t) - q] for t in query))
            )
        mine = rows[tasks]
        return tr.TaskBatch.from_tasks(mine, ways=whole.ways) if mine else None

    def __call__(self, rank: int, size: int) -> dict[str, float]:
        """How far this rank is from one that has all tasks."""
        learner, reg = self.made()
        twin, other = copy.deepcopy((learner, reg))
        whole = self.batch(slice(None))
        assert whole is not None
        step = tr.MetaStep(learner, reg)
        ddp = DistributedDataParallel(step, find_unused_parameters=self.find_unused)
        first = sum(self.counts[:rank])
        share = self.batch(slice(first, first + self.counts[rank]))
        worst: dict[str, float] = {}
        for _ in range(2):  # the second step draws anew
            one = other(twin, whole)
            expected = contracts.gradients(one.loss, twin, other)
            for module in (learner, reg):
                module.zero_grad()
            out = (ddp if self.ddp else step)(share)
            out.loss.backward()
            if not self.ddp:
                sync_gradients(learner, reg)
            pairs = {n: (getattr(out, n), getattr(one, n)) for n in LOOKS}
            pairs["predictions"] = (
                out.predictions,
                one.predictions[first : first + len(out.predictions)],
            )
            if self.sizes != "equal":
                pairs.pop("predictions")
            for i, module in enumerate((learner, reg)):
                for n, p in module.named_parameters():
                    found = torch.zeros_like(p) if p.grad is None else p.grad
                    pairs[f"gradient {i}.{n}"] = found, expected[f"{i}.{n}"]
            for n, (a, b) in pairs.items():
                if a is None or b is None:
                    assert a is None and b is None, n
                    continue
                assert a.shape == b.shape, (n, a.shape, b.shape)
                scale = 1 + (b.abs().max().item() if b.numel() else 0)
                off = (a - b).abs().max().item() / scale if a.numel() else 0.0
                worst[n] = max(worst.get(n, 0.0), off)
            assert max(g.abs().max().item() for g in expected.values()) > 1e-3
            assert out.engine == (one.engine if share is not None else "idle")
        return worst


LOOKS = (
    "loss",
    "task_loss",
    "relation_loss",
    "relations",
    "weights",
    "embeddings",
    "alignment_confidence",
)


# ---- a training run that can be killed and resumed --------------------------------------------


def train(
    rank: int, size: int, port: int, folder: str, steps: int, ends: str, how: str, timeout: float
) -> None:
    """Trains; with `ends` "kill" or "stop", rank 1 ends or falls asleep in the middle of step 8."""
    warnings.simplefilter("error")
    join(rank, size, port, timeout)
    path = pathlib.Path(folder) / "checkpoint.pt"
    problem = Problem([2, 1, 0][:size], "maml", "batched", options={"queries": 0.5})
    learner, reg = problem.made()
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=0.01)
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        for name, thing in (("learner", learner), ("reg", reg), ("optimizer", optimizer)):
            thing.load_state_dict(saved[name])
    step = tr.MetaStep(learner, reg)
    run = DistributedDataParallel(step) if how == "ddp" else step
    print(f"rank {rank} starts at step {start}", flush=True)
    with guarded():
        for number in range(start, steps):
            whole = contracts.regression_batch(seed=number, tasks=3)
            optimizer.zero_grad()
            out = run(own_tasks(whole))
            if number == 8 and rank == 1 and ends:
                os.kill(os.getpid(), signal.SIGKILL if ends == "kill" else signal.SIGSTOP)
            out.loss.backward()
            if how != "ddp":
                sync_gradients(learner, reg)
            optimizer.step()
            if rank == 0 and (number + 1) % 3 == 0:
                state = {"learner": learner, "reg": reg, "optimizer": optimizer}
                saved = {name: thing.state_dict() for name, thing in state.items()}
                torch.save({"step": number + 1, **saved}, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)
    if rank == 0:
        torch.save([p.detach() for p in optimizer.param_groups[0]["params"]], f"{folder}/end.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    _, *words = sys.argv
    train(*map(int, words[:3]), words[3], int(words[4]), words[5], words[6], float(words[7]))
