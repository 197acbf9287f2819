"""What a meta-step keeps in memory: over tasks, inner steps and the network's width.

    python -m trlearner.experiments.bench.memory --out experiments/results/bench/memory.json

Each number is the peak of resident memory of a process of its own, one at a time, less what the process held
when model, regularizer and batch stood. The step is of the sinusoid net, forward and backward, MAML,
second order, engine `batched`, all queries and all models in the relation term, one thread. A process that
wants more than `--limit` GiB is given up, and its row says so. What `--out` holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trlearner.experiments.bench import record
from trlearner.experiments.bench.workload import sinusoid
from trlearner.experiments.checkpoint import write_json

import trlearner as tr

BASE = {"tasks": 16, "steps": 5, "hidden": 40, "chunk": 0}  # a chunk of 0 is no chunk
TASKS = (16, 64, 256, 1024, 4096)
OVER_TASKS = [
    *({**BASE, "tasks": tasks, "chunk": chunk} for chunk in (0, 64) for tasks in TASKS),
    *({**BASE, "tasks": tasks, "chunk": 8} for tasks in TASKS[:-2]),
]
CASES = [
    *OVER_TASKS,
    *({**BASE, "tasks": 64, "steps": steps} for steps in (1, 2, 5, 10, 20)),
    *({**BASE, "hidden": hidden} for hidden in (40, 100, 200, 400, 800)),
]


def peak() -> int:
    """Bytes at the worst moment of this process so far."""
    (most,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(most)


def step(tasks: int, steps: int, hidden: int, chunk: int) -> dict[str, float]:
    """One meta-step in this process: its peak above what it began with, and its seconds."""
    torch.set_num_threads(1)
    work = sinusoid(tasks, steps)
    net = nn.Sequential(
        nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )
    learner = tr.MAML(net, lr=work.rate, steps=steps, engine="batched")
    reg = tr.TRLearner(work.encoder(net), chunk_size=1)
    reg(learner, work.batch[:3]).loss.backward()  # what is loaded once is loaded now
    reg.chunk_size = chunk or None
    before, started = peak(), time.perf_counter()
    reg(learner, work.batch).loss.backward()
    return {"bytes": peak() - before, "seconds": time.perf_counter() - started}


def measured(case: dict[str, int], limit: float) -> dict[str, Any]:
    """The same in a process of its own, which may have so many GiB of addresses."""
    bound = int(limit * 2**30)
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--step", json.dumps(case)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound)),
    )
    if done.returncode == 0:
        return {**case, **json.loads(done.stdout)}
    if "can't allocate memory" not in done.stderr:
        raise RuntimeError(done.stderr)
    return {**case, "bytes": None, "seconds": None}


def table(rows: Sequence[dict[str, Any]], limit: float) -> str:
    """MiB of every case, in Markdown."""
    lines = [
        "| tasks | steps | hidden units | `chunk_size` | MiB | s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cost = f"over {limit:g} GiB | –"
        if row["bytes"] is not None:
            cost = f"{row['bytes'] / 2**20:,.0f} | {row['seconds']:.2f}"
        chunk = row["chunk"] or "–"
        lines.append(f"| {row['tasks']} | {row['steps']} | {row['hidden']} | {chunk} | {cost} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory over tasks for each chunk, over steps, and over width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    count = len(OVER_TASKS)
    parts = {"tasks": rows[:count], "steps": rows[count:-5], "hidden": rows[-5:]}
    for axes, (name, part) in zip(panels, parts.items(), strict=True):
        for chunk in dict.fromkeys(row["chunk"] for row in part):
            line = [r for r in part if r["chunk"] == chunk and r["bytes"] is not None]
            label = f"chunk_size={chunk or None}"
            axes.loglog(
                [r[name] for r in line], [r["bytes"] / 2**20 for r in line], "o-", label=label
            )
        axes.set_xlabel({"tasks": "tasks", "steps": "inner steps", "hidden": "hidden units"}[name])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("MiB of a meta-step")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=12.0, metavar="GIB")
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(step(**options.step)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for case in sorted(CASES, key=lambda case: case["tasks"]):  # what takes long comes last
        if any(case.items() <= row.items() for row in rows):
            continue
        rows.append(measured(case, options.limit))
        print(table(rows[-1:], options.limit).splitlines()[-1], flush=True)
        found = {"machine": record.machine(), "versions": record.versions()}
        write_json(options.out, {**found, "limit_gib": options.limit, "rows": rows})
    order = [next(row for row in rows if case.items() <= row.items()) for case in CASES]
    plot(order, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
