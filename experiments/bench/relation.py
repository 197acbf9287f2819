"""What the relation term costs, by setting: time and counted work as multiples of the learner's alone.

    python -m trlearner.experiments.bench.relation --json experiments/results/bench/relation.json

A case is a learner on a number of tasks with the engine that suits; its settings take turns in one process,
and what is measured is CPU time, which other work on the machine disturbs less. Operations are those of
matrix products and convolutions, as in `floor`, counted on an engine that runs one task at a time. ``--json``
keeps what the file has of other cases: they may be measured one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trlearner.experiments.bench import floor, record, timing
from trlearner.experiments.bench.workload import (
    OUTER_RATE,
    WORKLOADS,
    Workload,
    conv,
    sinusoid,
    with_learner,
)

import trlearner as tr

ALONE = "learner alone"


@dataclass(frozen=True)
class Case:
    """A learner on tasks, and the settings to try.

    Attributes:
        workload: Its learner, tasks, network and encoder.
        engine: Which is timed.
        counted: Which the work is counted on.
        settings: Options of `TRLearner` by what the table calls them.
    """

    workload: Callable[[], Workload]
    engine: str
    counted: str
    settings: Mapping[str, Mapping[str, Any]]


def few(top_k: int) -> dict[str, Any]:
    return {f"top_k={top_k}": {"top_k": top_k}}


def with_group_norm() -> Workload:
    """Conv-4 whose layers do not couple samples, so that only the queries that are asked for are run."""
    workload = conv("conv4-1step, GroupNorm", steps=1)

    def build() -> nn.Sequential:
        layers = workload.build()
        return nn.Sequential(
            *(nn.GroupNorm(4, 32) if isinstance(m, nn.BatchNorm2d) else m for m in layers)
        )

    return replace(workload, build=build)


FULL: dict[str, Any] = {"all models, all queries": {}}
PART: dict[str, Any] = {"queries=0.3": {"queries": 0.3}}
BOTH: dict[str, Any] = {"top_k=4, queries=0.3": {"top_k": 4, "queries": 0.3}}
LAST = "the last layer"
HEAD: dict[str, Any] = {"head": {"head": LAST}}
CONV = {**FULL, **PART, **few(2), **few(1), "chunk_size=1": {"chunk_size": 1}}
SMALL = {
    16: {**FULL, **PART, **few(4), **BOTH, **HEAD},
    64: {**FULL, **BOTH, **HEAD},
}
FEW = {**few(4), **few(2), **few(1)}
# All models at once would keep 10 GB.
CHUNKED: dict[str, Any] = {"all models, all queries, chunk_size=1": {"chunk_size": 1}}
WITH_FEWER: dict[str, Any] = {"top_k=2, queries=0.3": {"top_k": 2, "queries": 0.3}}
IMAGES: dict[str, tuple[Callable[[], Workload], Mapping[str, Any]]] = {
    "conv4-1step": (WORKLOADS["conv4-1step"], {**CONV, **HEAD}),
    "conv4-1step, GroupNorm": (with_group_norm, {**CONV, **WITH_FEWER, **HEAD}),
    "ANIL on conv4-1step": (WORKLOADS["ANIL on conv4-1step"], CONV),
    "conv4-16tasks": (WORKLOADS["conv4-16tasks"], {**CHUNKED, **FEW, **HEAD}),
    "ANIL on conv4-16tasks": (
        partial(with_learner, "ANIL", WORKLOADS["conv4-16tasks"]),
        {**FULL, **FEW},
    ),
    "conv4-84": (WORKLOADS["conv4-84"], {**FULL, **few(2), **few(1), **HEAD}),
    "ANIL on conv4-84": (
        partial(with_learner, "ANIL", WORKLOADS["conv4-84"]),
        {**FULL, **few(2), **few(1)},
    ),
}
CASES: dict[str, Case] = {
    **{
        f"sinusoid-{n}": Case(partial(sinusoid, n), "compiled", "loop", SMALL.get(n, BOTH))
        for n in (16, 64, 128, 256, 512)
    },
    **{
        name: Case(workload, "channels_last", "channels_last", settings)
        for name, (workload, settings) in IMAGES.items()
    },
}


def step(workload: Workload, engine: str, options: Mapping[str, Any]) -> Callable[[], tr.Output]:
    """A whole meta-step with these options."""
    net = workload.net()
    learner = workload.learner(net, engine)
    if options.get("head") == LAST:
        options = {**options, "head": str(len(net) - 1)}
    reg = tr.TRLearner(
        encoder=workload.encoder(net),
        loss_fn=workload.loss,
        generator=torch.Generator().manual_seed(2),
        **{**workload.relation, **options},
    )
    if reg.lam:
        reg.encoder.prepare(learner, workload.batch)
    trained = [*learner.parameters(), *(reg.parameters() if reg.lam else ())]
    outer = torch.optim.Adam(trained, lr=OUTER_RATE, fused=True)

    def run() -> tr.Output:
        outer.zero_grad()
        out: tr.Output = reg(learner, workload.batch)
        out.loss.backward()
        outer.step()
        return out

    return run


def measure(case: Case, rounds: int, budget: float) -> dict[str, dict[str, float]]:
    """By setting: milliseconds, operations, and both over the learner's alone."""
    workload = case.workload()
    settings: dict[str, Mapping[str, Any]] = {ALONE: {"lam": 0.0}, **case.settings}
    steps, flops = {}, {}
    for name, options in settings.items():
        counted = step(workload, case.counted, options)
        counted()  # settles what a first step settles
        flops[name] = floor.count(counted).flops
        steps[name] = step(workload, case.engine, options)
        steps[name]()
    times = timing.measure(steps, rounds, budget, time.process_time)
    alone = times[ALONE].median, flops[ALONE]
    return {
        name: {
            "median_ms": t.median,
            "ms_a_task": t.median / len(workload.batch),
            "turns": len(t.milliseconds),
            "flops": flops[name],
            "times_alone": t.median / alone[0],
            "work_times_alone": flops[name] / alone[1],
            "over_its_work": t.median / alone[0] / (flops[name] / alone[1]),
        }
        for name, t in times.items()
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: a line for each case and setting."""
    lines = [
        "| | setting | ms | ms a task | time, alone = 1 | counted work, alone = 1 | time over work |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, rows in results.items():
        for i, (name, row) in enumerate(rows.items()):
            numbers = [row["median_ms"], row["ms_a_task"], row["times_alone"]]
            numbers += [row["work_times_alone"], row["over_its_work"]]
            texts = " | ".join(f"{v:.0f}" if v >= 1000 else f"{v:.3g}" for v in numbers)
            lines.append(f"| {case if i == 0 else ''} | {name} | {texts} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints the table; returns what was measured, by case."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", default=["*"], metavar="PATTERN", help=", ".join(CASES)
    )
    parser.add_argument("--rounds", type=int, default=11, help="turns of each setting")
    parser.add_argument(
        "--budget", type=float, default=10, metavar="SECONDS", help="for one's turns"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        if any(fnmatchcase(name, pattern) for pattern in options.cases):
            results[name] = measure(case, options.rounds, options.budget)
            if options.json:
                record.save_case(options.json, name, results[name], CASES)
    print(table(results))
    return results


if __name__ == "__main__":
    main()
