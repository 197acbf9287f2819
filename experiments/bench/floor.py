"""How much work a meta-step is, and how long plain passes of the same network take for as much.

The floating-point operations of matrix products and convolutions and the bytes of everything that is read
and written are counted while engine ``loop`` runs, which computes nothing twice. Plain forward and backward
passes of the same network over as many samples as the meta-step runs it on, in one batch without an inner
loop, are timed in the same turns as the contenders; their rate is what a meta-step could reach at best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from trlearner.experiments.bench.ours import VARIANTS, ours
from trlearner.experiments.bench.timing import Step, Timing
from trlearner.experiments.bench.workload import Workload

ENGINE = "loop"


@dataclass(frozen=True)
class Work:
    """What was counted.

    Attributes:
        flops: Of matrix products and convolutions; a multiplication and an addition are two.
        bytes: Read and written by all operations, were nothing kept in a cache.
    """

    flops: int
    bytes: int


@dataclass(frozen=True)
class Floor:
    """The work of a meta-step in each variant, and of plain passes.

    Attributes:
        work: By variant.
        plain: Of `plain_step`.
        timing: Of it.
    """

    work: dict[str, Work]
    plain: Work
    timing: Timing

    def milliseconds(self, variant: str) -> float:
        """How long a meta-step would take at the rate of plain passes."""
        return self.timing.median * self.work[variant].flops / self.plain.flops


def count(step: Callable[[], object]) -> Work:
    """The work of one call."""
    with FlopCounterMode(display=False) as flops, _Bytes() as traffic:
        step()
    return Work(flops.get_total_flops(), traffic.total)


def work(workload: Workload, variants: Iterable[str] = tuple(VARIANTS)) -> dict[str, Work]:
    """Of a meta-step, by variant; the optimizer's is part of it."""
    found = {}
    for variant in variants:
        made = ours(workload, ENGINE, variant)
        made.step()  # settles what a first step settles
        found[variant] = count(made.step)
    return found


def plain_step(workload: Workload) -> Step:
    """One forward and backward pass over all samples: every step's support, and the queries."""
    net = workload.net()
    xs, ys, xq, yq = workload.tensors()
    x = torch.cat([*[xs.flatten(0, 1)] * workload.steps, xq.flatten(0, 1)])
    y = torch.cat([*[ys.flatten(0, 1)] * workload.steps, yq.flatten(0, 1)])

    def step() -> None:
        net.zero_grad()
        workload.loss(net(x), y).backward()

    return step


class _Bytes(TorchDispatchMode):
    """Adds up the sizes of what operations take and return; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            touched = {
                id(t): t for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor)
            }
            self.total += sum(t.numel() * t.element_size() for t in touched.values())
        return found
