"""What watching costs.

    python -m trlearner.experiments.bench.monitor --seconds 60 --out experiments/results/bench/monitor.json

Trains the sinusoid net (T = 16, 5 second-order steps) for a while with a `RelationMonitor` that writes real
event files, and prints the share of the time that went into the monitor, for each engine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs.build import make_learner, make_problem, make_regularizer

import trlearner as tr

WARM_UP = 20


class Timed:
    """A monitor, and the time that it takes."""

    def __init__(self, monitor: tr.RelationMonitor) -> None:
        self.monitor = monitor
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> None:
        started = time.perf_counter()
        self.monitor(*arguments)
        self.seconds += time.perf_counter() - started


def watch(engine: str, seconds: float, every: int) -> dict[str, float | str]:
    """Trains for so long; what it took, and how much of it the monitor."""
    config = Config("regression/families", tasks=16, shots=10)
    torch.manual_seed(0)
    problem = make_problem(config, None, "cpu")
    learner = make_learner(config, problem, engine)
    reg = make_regularizer(config, problem, learner, "cpu")
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        out = reg(learner, problem.source.sample("train", config.tasks, generator))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        timed = Timed(tr.RelationMonitor(writer, every=every, families=str))
        reg.monitor = timed
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            step()
            steps += 1
        passed = time.perf_counter() - started
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return {
        "engine": engine,
        "seconds": passed,
        "steps": steps,
        "milliseconds a step without it": 1e3 * (passed - timed.seconds) / steps,
        "share of the time": timed.seconds / passed,
        "megabytes written": size / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["batched", "compiled"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [watch(engine, given.seconds, given.every) for engine in given.engines]
    print("| engine | steps | ms a step without it | share of the time | MB written |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = (
            row["engine"],
            row["steps"],
            f"{row['milliseconds a step without it']:.2f}",
            f"{row['share of the time']:.2%}",
            f"{row['megabytes written']:.1f}",
        )
        print("| " + " | ".join(str(cell) for cell in cells) + " |")
    if given.out:
        given.out.write_text(json.dumps({"every": given.every, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
