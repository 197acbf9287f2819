"""Do engines and relations compute on a device what engine ``loop`` computes on the CPU?

Networks are small and smooth: no kink of ReLU or pooling makes rounding look like a fault.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trlearner.experiments.bench.learners import OTHERS, Make, maml
from trlearner.experiments.bench.ours import ENGINES, REFERENCE, pair
from trlearner.experiments.bench.workload import CURVES, Workload, conv, sinusoid

import trlearner as tr
from trlearner.relations.align import sinkhorn

EXACT, SINGLE = 1e-9, 1e-4
"""Allowed differences in float64, and in float32 for what is compiled."""
EAGER = (*(e for e in ENGINES if e not in ("auto", "compiled")), "traced")
STEADY = ("batched", "traced", "compiled")
"""Engines that must not wait for the device within a meta-step."""
OPTIONS = {"lam": 0.1, "queries": 0.5}
SMOOTH: Mapping[type[nn.Module], Callable[[], nn.Module]] = {
    nn.ReLU: nn.Tanh,
    nn.MaxPool2d: partial(nn.AvgPool2d, 2),
}

Check = Callable[[], dict[str, Any]]
CPU = torch.device("cpu")


def eager(device: torch.device) -> Iterator[tuple[str, Check]]:
    """A check for each learner on each engine without a compiler, in float64."""
    for name, workload in workloads().items():
        for engine in EAGER:
            yield f"{name}, {engine}", partial(meta_step, device, name, workload, engine)


def compiled(device: torch.device) -> Iterator[tuple[str, Check]]:
    """A check for each learner on engine ``compiled``, in float32."""
    for name, workload in workloads().items():
        yield f"{name}, compiled", partial(meta_step, device, name, workload, "compiled")


def workloads() -> dict[str, Workload]:
    """Every learner on curves, and those that classify on images."""
    curves = {"MAML": maml, **{name: OTHERS[name] for name in CURVES}}
    images = {"MAML": maml, "ANIL": OTHERS["ANIL"], "ProtoNet": OTHERS["ProtoNet"]}
    small = partial(conv, "images", 2, tasks=3, size=8, queries=2, filters=4, blocks=2)
    return {
        **{
            f"{name} on curves": _smooth(sinusoid(4, steps=2), make)
            for name, make in curves.items()
        },
        **{f"{name} on images": _smooth(small(), make) for name, make in images.items()},
    }


def _smooth(workload: Workload, make: Make) -> Workload:
    def build() -> nn.Sequential:
        return nn.Sequential(*(SMOOTH.get(type(m), lambda m=m: m)() for m in workload.build()))

    return replace(workload, build=build, make=make)


def meta_step(device: torch.device, name: str, workload: Workload, engine: str) -> dict[str, Any]:
    """One whole meta-step with its gradients, on the device and by `REFERENCE` on the CPU."""
    single = engine == "compiled"
    workload = (workload if single else workload.double()).to(device)
    found, waits = _quantities(workload, engine)
    error = worst(found, _expected(name))
    return row(error, SINGLE if single else EXACT, waits, strict=engine in STEADY)


@cache
def _expected(name: str) -> dict[str, Tensor]:
    return _quantities(workloads()[name].double(), REFERENCE)[0]


def _quantities(workload: Workload, engine: str) -> tuple[dict[str, Tensor], int | None]:
    """Everything that a meta-step computes, and how often its second run waits for the device."""
    net = workload.net()
    learner, reg = pair(workload, net, engine, OPTIONS)
    trained = {
        **dict(learner.named_parameters()),
        **{f"reg.{n}": p for n, p in reg.named_parameters()},
    }
    draws = reg.generator.get_state()

    def run() -> dict[str, Tensor]:
        reg.generator.set_state(draws)
        out = reg(learner, workload.batch)
        slopes = torch.autograd.grad(out.loss, list(trained.values()), allow_unused=True)
        known = {n: g for n, g in zip(trained, slopes, strict=True) if g is not None}
        parts = ("loss", "task_loss", "relation_loss", "relations", "weights", "predictions")
        return {**known, **{part: getattr(out, part).detach() for part in parts}}

    run()
    return waiting(workload.batch.query.x.device, run)


def relations(device: torch.device, tasks: int = 64) -> Iterator[tuple[str, Check]]:
    """A check for each function of relations on a large batch, with its gradient, in float64."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embeddings, heads = draw(tasks, 32), 1 + 0.1 * draw(4, 32)
    predictions, targets = draw(tasks, tasks, 10, 1), draw(tasks, 10, 1)
    prototypes = draw(tasks, 5, 16)

    def matrix(e: Tensor, w: Tensor) -> Tensor:
        return tr.relation_matrix(e, w)

    def weights(e: Tensor, w: Tensor, **options: Any) -> Tensor:
        return tr.relation_weights(matrix(e, w), **options)

    def consistency(e: Tensor, w: Tensor, p: Tensor, y: Tensor) -> Tensor:
        return tr.relation_consistency(p, y, matrix(e, w), mse_loss)

    cases: dict[str, tuple[Callable[..., Tensor], Sequence[Tensor]]] = {
        "relation_matrix": (matrix, (embeddings, heads)),
        **{
            f"relation_weights, {kind}": (partial(weights, normalize=kind), (embeddings, heads))
            for kind in ("sum", "softmax", "quotient")
        },
        "relation_weights, top_k": (partial(weights, top_k=8), (embeddings, heads)),
        "relation_consistency": (consistency, (embeddings, heads, predictions, targets)),
        "alignment, sinkhorn": (sinkhorn, (prototypes,)),
    }
    for name, (function, given) in cases.items():
        yield name, partial(_function, device, function, given)


def _function(
    device: torch.device, function: Callable[..., Tensor], given: Sequence[Tensor]
) -> dict[str, Any]:
    def at(place: torch.device) -> tuple[dict[str, Tensor], int | None]:
        inputs = [t.to(place).requires_grad_() for t in given]

        def run() -> dict[str, Tensor]:
            value = function(*inputs)
            slopes = torch.autograd.grad(value.square().sum(), inputs)
            return {"value": value.detach(), **{str(i): g for i, g in enumerate(slopes)}}

        run()
        return waiting(place, run)

    (found, waits), (expected, _) = at(device), at(CPU)
    return row(worst(found, expected), EXACT, waits, strict=True)


def waiting(device: torch.device, run: Callable[[], Any]) -> tuple[Any, int | None]:
    """What `run` returns, and how often it waits for a CUDA device; ``None`` on another."""
    if device.type != "cuda":
        return run(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found, sum("synchronizing CUDA operation" in str(w.message) for w in caught)


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference, relative to one plus the largest expected value of its kind."""
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    errors = []
    for name, t in expected.items():
        off = (found[name].to(t.device, t.dtype) - t).abs().max() / (1 + t.abs().max())
        errors.append(float(off))
    # A comparison with NaN is false, so max() could pass over it.
    return max(errors, key=lambda e: (e != e, e))


def row(error: float, allowed: float, waits: int | None, strict: bool) -> dict[str, Any]:
    """A line of the report; `strict` where waiting is a fault."""
    good = error <= allowed and not (strict and waits)
    return {"error": error, "allowed": allowed, "waits": waits, "ok": good}
