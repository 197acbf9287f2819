"""A meta-step whose tasks are dealt out to ranks, compared with one process that has all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import contracts
import torch
from ranks import Failed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import trlearner as tr
from trlearner.distributed import sync_gradients

EXACT = 1e-10
ALIGNED = {"kind": "classes", "encoder": "labelled"}


LOOKS = (
    "loss",
    "task_loss",
    "relation_loss",
    "relations",
    "weights",
    "embeddings",
    "alignment_confidence",
)


class Normed(nn.Module):
    """head(tanh(norm(body(x)))), whose samples see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(contracts.INPUTS, contracts.HIDDEN)
        self.norm = nn.BatchNorm1d(contracts.HIDDEN)
        self.head = nn.Linear(contracts.HIDDEN, contracts.OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.body(x))))


def first_and_last(features: Tensor, support: tr.Samples) -> Tensor:
    """A choice of support samples."""
    return torch.tensor([0, support.x.shape[1] - 1]).expand(len(support.x), -1)


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
    ddp: dict[str, Any] | None = None  # the options of DDP, if it is used
    learner_options: dict[str, Any] = field(default_factory=dict)
    select: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def made(self) -> tuple[tr.Learner, tr.TRLearner]:
        torch.manual_seed(self.seed)
        model = Normed().double() if self.norm else contracts.net()
        learner = contracts.learner(self.learner, model, self.engine, **self.learner_options)
        encoder: tr.Encoder
        if self.encoder == "input":
            encoder = tr.InputEncoder(
                model.body, dim=contracts.HIDDEN, metadata="all", select=self.select
            )
        elif self.encoder == "labelled":
            encoder = tr.LabelledEncoder(
                model.body,
                dim=4,
                features=contracts.HIDDEN,
                targets=contracts.OUTPUTS,
                select=self.select,
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

    def batch(self, tasks: slice) -> tr.TaskBatch:
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
        return tr.TaskBatch.from_tasks(rows[tasks], ways=whole.ways)

    def __call__(self, rank: int, size: int) -> dict[str, float]:
        """How far this rank is from one that has all tasks."""
        learner, reg = self.made()
        twin, other = copy.deepcopy((learner, reg))
        whole = self.batch(slice(None))
        step = tr.MetaStep(learner, reg)
        run = step if self.ddp is None else DistributedDataParallel(step, **self.ddp)
        first = sum(self.counts[:rank])
        share = self.batch(slice(first, first + self.counts[rank]))
        worst: dict[str, float] = {}
        for _ in range(2):  # the second step draws anew
            one = other(twin, whole)
            expected = contracts.gradients(one.loss, twin, other)
            for module in (learner, reg):
                module.zero_grad()
            out = run(share)
            out.loss.backward()
            if self.ddp is None:
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
                off = (a - b).abs().max().item() / (1 + b.abs().max().item())
                worst[n] = max(worst.get(n, 0.0), off)
            assert max(g.abs().max().item() for g in expected.values()) > 1e-3
            assert out.engine == one.engine
        return worst


def made(**options: Any) -> tuple[tr.MetaStep, tr.TaskBatch]:
    """A step, and two tasks."""
    problem = Problem([2, 2], options=options)
    return tr.MetaStep(*problem.made()), problem.batch(slice(0, 2))


def check_equal(found: list[Any]) -> None:
    """That no rank was farther from one process than rounding."""
    for rank, worst in enumerate(found):
        assert not isinstance(worst, Failed), f"rank {rank}: {worst.trace}"
        assert {"loss", "task_loss"} <= set(worst)
        assert any(n.startswith("gradient") for n in worst)
        off = {n: v for n, v in worst.items() if not v <= EXACT}
        assert not off, f"rank {rank}: {off}"


def problems(counts: Sequence[int]) -> dict[str, Problem]:
    """Every kind of step, its tasks on ranks like this."""
    dealt = partial(Problem, counts)
    found = {}
    for engine in ("loop", "batched"):
        for name in contracts.LEARNERS:
            found[f"{name} {engine}"] = dealt(name, engine)
        found[f"protonet {engine}"] = dealt(
            "protonet", engine, **ALIGNED, options={"align": "sinkhorn"}
        )
        some = {"queries": 0.5}
        found[f"BatchNorm {engine}"] = dealt("maml", engine, norm=True, options=some)
        found[f"BatchNorm, shared body, top_k {engine}"] = dealt(
            "anil", engine, norm=True, options={**some, "top_k": 2}
        )
    for name in ("softmax", "quotient"):
        found[name] = dealt(options={"normalize": name})
    options: dict[str, dict[str, Any]] = {
        "logits": {"align": "none"},
        "sinkhorn, top_k, softmax": {"align": "sinkhorn", "top_k": 2, "normalize": "softmax"},
        "hungarian": {"align": "hungarian"},
        "values, aligned": {"align": "sinkhorn", "mixture": "values", "top_k": 1},
    }
    found |= {name: dealt(**ALIGNED, options=some) for name, some in options.items()}
    some = {"queries": 0.6}
    return found | {
        "higher": dealt(engine="higher"),
        "auto": dealt(engine="auto"),
        "first order": dealt(encoder="update", learner_options={"first_order": True}),
        "update encoder": dealt(encoder="update"),
        "function encoder": dealt(encoder="function"),
        "queries": dealt(options={"queries": 0.4}),
        "masks": dealt(sizes="unequal", options=some),
        "masks, loop, top_k": dealt(engine="loop", sizes="unequal", options={**some, "top_k": 1}),
        "masks, BatchNorm": dealt(engine="loop", sizes="unequal", norm=True, options=some),
        "ranks of other sizes": dealt(sizes="queries", options=some),
        "heads": dealt(options={"head": "head", **some}),
        "heads, BatchNorm, top_k": dealt(norm=True, options={"head": "head", **some, "top_k": 2}),
        "heads, masks": dealt("tnet", "loop", sizes="unequal", options={"head": "head", **some}),
        "chunks": dealt(options={"chunk_size": 1}),
        "chunks, top_k": dealt(options={"chunk_size": 1, "top_k": 2}),
        "chunks, auto": dealt(options={"chunk_size": "auto", "memory_budget": 1}),
        "chunks, auto, top_k": dealt(
            "anil", options={"chunk_size": "auto", "memory_budget": 10**4, "top_k": 2}
        ),
        "chunks, logits": dealt(**ALIGNED, options={"align": "sinkhorn", "chunk_size": 2}),
        "lam 0": dealt(options={"lam": 0.0}),
        "select": dealt(select=0.5),
        "select, masks": dealt(sizes="unequal", select=0.5, options={**some, "top_k": 1}),
        "select, function": dealt(select=first_and_last),
        "select, classes": dealt(**ALIGNED, select=3, options={"align": "sinkhorn"}),
        "ddp": dealt(ddp={}),
        "ddp, unused": dealt("anil", ddp={"find_unused_parameters": True}),
        "ddp, bucket view": dealt(ddp={"gradient_as_bucket_view": True}),
        "ddp, masks": dealt("metasgd", ddp={}, sizes="unequal", options=some),
        "ddp, lam 0": dealt(ddp={}, options={"lam": 0.0}),
    }
