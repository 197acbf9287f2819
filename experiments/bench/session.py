"""One workload from start to end: build, first step, check, turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from trlearner.experiments.bench import floor, timing
from trlearner.experiments.bench.contender import (
    Build,
    Contender,
    Expected,
    Unavailable,
    check,
    first_gradient,
    too_long,
    wanted,
)
from trlearner.experiments.bench.floor import Floor
from trlearner.experiments.bench.learners import maml
from trlearner.experiments.bench.ours import OURS, PLAIN, REFERENCE, VARIANTS, ours
from trlearner.experiments.bench.peers import PEERS
from trlearner.experiments.bench.timing import Timing
from trlearner.experiments.bench.workload import Workload


@dataclass(frozen=True)
class Start:
    """What the first step of a contender shows.

    Attributes:
        seconds: It took; tracing and compiling are part of it, where there is any.
        error: Of the meta-gradient, relative to that of our engine `REFERENCE`.
        precision: That of the comparison.
    """

    seconds: float
    error: float
    precision: str


@dataclass(frozen=True)
class Row:
    """What is known of a contender on a workload; `variant` says which of ours, peers are `PLAIN`."""

    variant: str
    start: Start
    timing: Timing


@dataclass
class Found:
    """The rows of a workload, why some are missing, and how fast they could be."""

    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    floor: Floor | None = None


EVERYONE: dict[str, tuple[Build, str]] = {
    **{name: (build, PLAIN) for name, build in PEERS.items()},
    **OURS,
}
"""All contenders, peers first: how they are built, and whose gradient they must have."""


PASSES = "plain passes"
"""What takes turns with the contenders, for the floor."""


def run(
    workload: Workload,
    patterns: Sequence[str],
    rounds: int,
    budget: float,
    clock: timing.Step = time.perf_counter,
) -> Found:
    """Times everyone whom the patterns want and who can run here.

    Raises:
        ValueError: A contender computes another gradient than our engine `REFERENCE`.
    """
    found, expected = Found(), {variant: _reference(variant) for variant in VARIANTS}
    ready: dict[str, tuple[Contender, str, Start]] = {}
    for name, (build, variant) in EVERYONE.items():
        if not wanted(name, workload.name, patterns):
            continue
        try:
            if name in PEERS and workload.make is not maml:
                raise Unavailable("takes steps of MAML only")
            if reason := too_long(name, workload, patterns):
                raise Unavailable(reason)
            made, start = _start(name, workload, build, expected[variant])
        except (Unavailable, ImportError) as reason:
            found.left_out[name] = str(reason)
            _say(f"{workload.name}: {name} is left out: {reason}")
            continue
        ready[name] = made, variant, start
        _say(
            f"{workload.name}: {name}: first step {start.seconds:.2f} s, meta-gradient to "
            f"{start.error:.0e} in {start.precision}"
        )
    steps = {n: made.step for n, (made, *_) in ready.items()}
    plain = steps[PASSES] = floor.plain_step(workload)
    times = timing.measure(steps, rounds, budget, clock)
    counted = {PLAIN, *(variant for _, variant, _ in ready.values())}
    work = floor.work(workload, [variant for variant in VARIANTS if variant in counted])
    found.floor = Floor(work, floor.count(plain), times[PASSES])
    found.rows = {n: Row(variant, start, times[n]) for n, (_, variant, start) in ready.items()}
    return found


def _start(
    name: str, workload: Workload, build: Build, expected: Expected
) -> tuple[Contender, Start]:
    made = build(workload)
    begun = time.perf_counter()
    made.step()
    seconds = time.perf_counter() - begun
    return made, Start(seconds, *check(name, workload, made, build, expected))


def _reference(variant: str) -> Expected:
    """The meta-gradient of our engine `REFERENCE`, computed once for each precision."""
    known: dict[torch.dtype, list[torch.Tensor]] = {}

    def expected(workload: Workload) -> list[torch.Tensor]:
        dtype = workload.batch.query.x.dtype
        if dtype not in known:
            build = partial(ours, engine=REFERENCE, variant=variant)
            known[dtype] = first_gradient(build, workload)
        return known[dtype]

    return expected


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
