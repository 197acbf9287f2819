"""Which engine is fastest on a CPU, from small convolutions to large ones, and which one ``auto`` takes.

    python -m trlearner.experiments.bench.crossover --json experiments/results/bench/crossover.json

A row is a network on tasks, learned by MAML alone, with the engines in turns in one process; speeds are of
medians in CPU time. Operations are those that `trlearner.engines.choose` decides by: of one task's forward
pass over its support and query samples. ``--json`` keeps what the file has of other rows, so that rows may
be measured one by one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from trlearner.experiments.bench import record, relation, timing
from trlearner.experiments.bench.learners import fomaml
from trlearner.experiments.bench.workload import Workload, conv, fingerprint, flat
from trlearner.experiments.data.models.pose import pose_network

import trlearner as tr
from trlearner.engines import choose

BASE, ENGINES = "batched", ("loop", "channels_last", "batched")


Row = Callable[[], Workload]


def small(steps: int, tasks: int = 4, **net: int) -> Row:
    return partial(conv, "", steps, tasks=tasks, **net)


def of_first_order(workload: Workload) -> Workload:
    """Without second derivatives."""
    return replace(workload, make=fomaml)


def without_norm(workload: Workload) -> Workload:
    """Without BatchNorm; the inner rate is a tenth, for nothing keeps activations small."""

    def build() -> nn.Sequential:
        return nn.Sequential(*(m for m in workload.build() if not isinstance(m, nn.BatchNorm2d)))

    return replace(workload, build=build, rate=workload.rate / 10)


def pose(size: int, filters: int, steps: int, tasks: int) -> Workload:
    """10 support and 10 query pictures of noise, a number for each."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, 20, 1, size, size, generator=draw)
    y = torch.randn(tasks, 20, 1, generator=draw)
    return Workload(
        "pose",
        lambda: flat(pose_network(size, filters)),
        tr.TaskBatch((x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])),
        mse_loss,
        0.01,
        steps,
        lambda net: tr.LabelledEncoder(net[:-1], dim=32),
    )


TINY = {"size": 16, "queries": 1, "blocks": 2, "filters": 4}
MIDDLE = {"queries": 3, "filters": 16}
LIGHT = {"size": 32, "shots": 3, "queries": 3, "blocks": 3, "filters": 8}
ROWS: dict[str, Row] = {
    "2 blocks of 4 filters, 16 × 16, BatchNorm, 5 + 5 samples, 1 step, T = 4": small(1, **TINY),
    "the same, T = 16": small(1, 16, **TINY),
    "3 blocks of 8, 28 × 28, BatchNorm, 5 + 15, 5 steps": small(5, queries=3, blocks=3, filters=8),
    "3 blocks of 8, 32 × 32, no norm, 15 + 15, 5 steps of first order": lambda: of_first_order(
        without_norm(conv("", 5, **LIGHT))
    ),
    "4 blocks of 16, 28 × 28, BatchNorm, 5 + 15, 5 steps, T = 4": small(5, **MIDDLE),
    "4 blocks of 16, the same, T = 16": small(5, 16, **MIDDLE),
    "pose network, 32 × 32, 16 filters, 10 + 10, 3 steps of first order, T = 8": lambda: (
        of_first_order(pose(32, 16, 3, 8))
    ),
    "Conv-4, 5 + 15, 5 steps": small(5, queries=3),
    "pose network, 64 × 64, 32 filters, 1 step of first order, T = 4": lambda: of_first_order(
        pose(64, 32, 1, 4)
    ),
    "Conv-4, 25 + 75, 1 step": small(1, shots=5),
    "fingerprint net of 100, 10 + 20, 5 steps, T = 4": partial(fingerprint, 4, 100),
    "fingerprint net of 100, the same, T = 16": partial(fingerprint, 16, 100),
    "fingerprint net of 200, T = 16": partial(fingerprint, 16, 200),
    "fingerprint net of 500, T = 4": partial(fingerprint, 4),
    "fingerprint net of 500, T = 64": partial(fingerprint, 64),
}
"""By what the table calls them; T = 4 and second order where nothing else is said."""


def operations(learner: tr.Learner, workload: Workload) -> float:
    """Of one task's forward pass over all its samples, as `choose` counts them."""
    support, query = workload.batch.support, workload.batch.query
    return (support.x.shape[1] + query.x.shape[1]) * choose.work(learner, support, workload.loss)


def measure(row: Row, rounds: int, budget: float) -> dict[str, Any]:
    """Operations, milliseconds of every engine, and what ``auto`` takes."""
    workload = row()
    steps = {e: relation.step(workload, e, {"lam": 0.0}) for e in (*ENGINES, "auto")}
    taken = steps.pop("auto")().engine
    for step in steps.values():
        step()
    times = timing.measure(steps, rounds, budget, process_time)
    return {
        "operations": operations(workload.learner(workload.net(), "loop"), workload),
        "median_ms": {engine: t.median for engine, t in times.items()},
        "turns": {engine: len(t.milliseconds) for engine, t in times.items()},
        "auto": taken,
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: speeds as multiples of `BASE`'s, and how much faster the best is than ``auto``."""
    lines = [
        "| network | operations of a task's forward pass | "
        + " | ".join(f"`{engine}`" for engine in ENGINES)
        + " | `auto` takes | the best, `auto` = 1 |",
        "|---" * (len(ENGINES) + 4) + "|",
    ]
    for name, found in results.items():
        ms = found["median_ms"]
        speeds = " | ".join(f"{ms[BASE] / ms[e]:.2f}" if e != BASE else "1" for e in ENGINES)
        best = ms[found["auto"]] / min(ms.values())
        cells = f"{found['operations'] / 1e6:.3g} M | {speeds} | `{found['auto']}` | {best:.2f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints the table; returns what was measured, by row."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="; ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=11, help="turns of each engine")
    parser.add_argument(
        "--budget", type=float, default=15, metavar="SECONDS", help="for one engine's turns"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, row in ROWS.items():
        if any(fnmatchcase(name, pattern) for pattern in options.rows):
            results[name] = measure(row, options.rounds, options.budget)
            if options.json:
                record.save_case(options.json, name, results[name], ROWS)
    print(table(results))
    return results


if __name__ == "__main__":
    main()
