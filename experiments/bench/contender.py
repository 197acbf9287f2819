"""What a contender is, which ones are wanted, and whether they compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from trlearner.experiments.bench.workload import Workload

TOLERANCE, EXACT = 1e-4, 1e-6
"""Of the meta-gradient relative to its norm, in float32 and in float64 (one peer's rate stays float32)."""


class Unavailable(Exception):
    """A contender cannot run here; the text says why and what to do."""


@dataclass(frozen=True)
class Contender:
    """One way to take a meta-step.

    Attributes:
        step: All of it: gradients cleared, inner loops, backward, optimizer.
        gradient: The meta-gradient of the first step, in the order of the network's parameters.
    """

    step: Callable[[], object]
    gradient: Callable[[], Sequence[Tensor]]


Build = Callable[[Workload], Contender]
Expected = Callable[[Workload], Sequence[Tensor]]


def of_torch(step: Callable[[], object], net: nn.Module) -> Contender:
    """A contender that leaves its gradients where `backward` does."""

    def gradient() -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]

    return Contender(step, gradient)


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far a gradient is off: the norm of the difference, relative to the expected norm."""
    shapes = [tuple(t.shape) for t in found], [tuple(t.shape) for t in expected]
    if shapes[0] != shapes[1]:
        raise ValueError(f"gradients must have the shapes {shapes[1]}, got {shapes[0]}.")
    one, other = (torch.cat([t.detach().double().flatten() for t in g]) for g in (found, expected))
    return float((one - other).norm() / other.norm())


def check(
    name: str, workload: Workload, found: Contender, build: Build, expected: Expected
) -> tuple[float, str]:
    """How far a contender's first meta-gradient is off, and the precision that showed it.

    In float32 rounding may move a value across a kink of ReLU or pooling, and the gradient by 1e-3. So one
    that is off there is built once more, in float64.

    Raises:
        ValueError: It is another gradient, so a comparison of speed would mean nothing.
    """
    off = error(found.gradient(), expected(workload))
    if off <= TOLERANCE:
        return off, "float32"
    exact = workload.double()
    off = error(first_gradient(build, exact), expected(exact))
    if off <= EXACT:
        return off, "float64"
    raise ValueError(
        f"{name!r} must compute the meta-gradient of trlearner's engine 'loop' on {workload.name}, but is "
        f"off by {off:.1e} even in float64. Mend it, or leave it out: --contenders '!{name}'."
    )


def first_gradient(build: Build, workload: Workload) -> list[Tensor]:
    """The meta-gradient of the first step of a contender that is then forgotten."""
    made = build(workload)
    made.step()
    return [tensor.clone() for tensor in made.gradient()]


def wanted(name: str, workload: str, patterns: Sequence[str]) -> bool:
    """Whether patterns select a contender on a workload.

    ``compiled*`` asks for some, ``!compiled*`` is for all but some; ``!compiled*@conv4*`` concerns some
    workloads only.

    Example:
        >>> [wanted("loop", "conv4", p) for p in (["l*"], ["!l*"], ["!l*@s*"], ["b*", "!c*"])]
        [True, False, True, False]
    """

    def matches(pattern: str) -> bool:
        contender, _, where = pattern.removeprefix("!").partition("@")
        return fnmatchcase(name, contender) and fnmatchcase(workload, where or "*")

    without = [p for p in patterns if p.startswith("!")]
    only = [p for p in patterns if not p.startswith("!")]
    return not any(map(matches, without)) and (not only or any(map(matches, only)))


def too_long(name: str, workload: Workload, patterns: Sequence[str]) -> str | None:
    """Why a contender is left out of a workload, unless a pattern without ``!`` asks for it."""
    if any(not p.startswith("!") for p in patterns):
        return None
    reasons = [why for pattern, why in workload.left_out.items() if fnmatchcase(name, pattern)]
    return reasons[0] if reasons else None
