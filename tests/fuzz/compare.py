"""What a run of a case yields, and whether two runs yield the same."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import trlearner as tr
from fuzz.draw_case import Problem
from trlearner.engines.graph import NotCompilable
from trlearner.tasks.nested import as_data, flat

Values = dict[str, Tensor]
"""All outputs of a meta-step and all its gradients, by name."""


class Tolerance(NamedTuple):
    """How far two values may differ."""

    relative: float  # to the largest entry of a value
    small: float  # a value far smaller than its kin, of whom it may be a sum, goes by this share of theirs


EXACT, SINGLE = Tolerance(1e-8, 1e-4), Tolerance(1e-4, 1e-2)
"""In float64, and of engine `compiled` in float32."""
GRADIENT = "gradient of "
LIBRARY = str(Path(tr.__file__).parent)
OF_TORCH = ("Expected more than 1 ",)
"""How torch's own errors begin that name what is wrong with the data."""


@dataclass(frozen=True)
class Refused:
    """The library, or torch, said clearly that it cannot do this."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """Something went wrong that no user would understand."""

    text: str


def attempt(run: Callable[[], Values]) -> Values | Refused | Broken:
    """What a run yields, or how it failed."""
    try:
        return run()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        text = str(error)
        # A deep error may surface in a line of ours as well; what we mean to say, we raise.
        last = frames[-1]
        ours = last.filename.startswith(LIBRARY) and (last.line or "").startswith("raise ")
        torchs = isinstance(error, ValueError) and text.startswith(OF_TORCH)
        if ours or torchs or isinstance(error, NotCompilable):
            return Refused(text)
        places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:]]
        return Broken(f"{type(error).__name__}: {text}\n    at " + "\n    at ".join(places))


def step(problem: Problem, engine: str) -> Values:
    """One regularized meta-step, gradients included."""
    learner, reg = problem.learner, problem.regularizer
    learner.engine = engine
    reg.generator.manual_seed(problem.case.number)
    out = reg(learner, problem.batch)
    assert out.engine == engine
    return outputs(out, problem.batch) | gradients(out.loss, problem)


def outputs(out: tr.Output, batch: tr.TaskBatch) -> Values:
    """All that an `Output` holds; of predictions those of real queries."""
    found = {f.name: getattr(out, f.name) for f in fields(out) if f.name != "engine"}
    answers = flat(as_data(found.pop("predictions")), 2)[batch.query.is_real()].detach()
    values = {name: t.detach() for name, t in found.items() if t is not None}
    return values | {"predictions": answers}


def gradients(loss: Tensor, problem: Problem) -> Values:
    """Of every parameter of learner and regularizer; zero for one that the loss does not reach."""
    parts = {"learner": problem.learner, "regularizer": problem.regularizer}
    named = {
        f"{GRADIENT}{part}.{name}": p
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    found: tuple[Tensor | None, ...] = (None,) * len(named)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def not_finite(values: Values) -> list[str]:
    """The names of values with a NaN or an infinity."""
    return [name for name, t in values.items() if not torch.isfinite(t).all()]


def differences(expected: Values, found: Values, tolerance: Tolerance) -> list[str]:
    """How two runs differ, a line for each value that does; an empty list where they agree."""
    lines = []
    if expected.keys() != found.keys():
        lines.append(f"only one has {sorted(expected.keys() ^ found.keys())}")
    sizes = {name: _largest(t) for name, t in expected.items()}
    outputs = [size for name, size in sizes.items() if not name.startswith(GRADIENT)]
    # A gradient may be a sum of parts that cancel; such parts are as large as the loss or the others.
    others = [size for name, size in sizes.items() if name.startswith(GRADIENT) or name == "loss"]
    kin = {False: max(outputs, default=0.0), True: max(others, default=0.0)}
    for name in expected.keys() & found.keys():
        one, other = expected[name], found[name]
        if one.shape != other.shape:
            lines.append(f"{name}: shapes {list(one.shape)} and {list(other.shape)}")
            continue
        scale = max(sizes[name], tolerance.small * kin[name.startswith(GRADIENT)])
        worst = _largest(one - other)
        if not worst <= tolerance.relative * scale:
            lines.append(f"{name}: differs by {worst:.3g}, scale {scale:.3g}")
    return sorted(lines)


def ill_conditioned(problem: Problem, values: Values) -> str | None:
    """Why engines may differ on this case by more than rounding, if they may: it is then not counted."""
    reg, relations = problem.regularizer, values.get("relations")
    if relations is None:
        return None
    tasks = len(relations)
    if reg.options.normalize == "quotient":
        others = relations.masked_fill(torch.eye(tasks, dtype=torch.bool), 0.0)
        if others.sum(1).abs().min() < 1e-2:
            return "quotient: a divisor near 0"
    if values["embeddings"].norm(dim=1).min() < 1e-3:
        return "an embedding of (almost) 0 has no direction"
    if reg.options.top_k is not None and reg.options.top_k < tasks - 1:
        ordered = _others(relations)
        if (ordered[:, reg.options.top_k - 1] - ordered[:, reg.options.top_k]).min() < 1e-6:
            return "top_k: two neighbours equally related"
    return None


def _others(relations: Tensor) -> Tensor:
    """Each task's relations to others, the largest first."""
    itself = torch.eye(len(relations), dtype=torch.bool)
    return relations.masked_fill(itself, -torch.inf).sort(1, descending=True).values


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0
