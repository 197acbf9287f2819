"""What a meta-step keeps in memory: over tasks, inner steps and the network's width.

    python -m trlearner.experiments.bench.memory --out experiments/results/bench/memory.json

Each number is the peak of resident memory of a process of its own, one at a time, less what the process had
held when model, regularizer and batch stood and a far smaller step had run. The step is forward and backward,
MAML, second order, one thread: of the sinusoid net on engine `batched`, or of Conv-4 on `channels_last` (28 x
28 images, 5 ways, 5 shots and 3 queries a class). Freed blocks go back to the system, by
``MALLOC_MMAP_THRESHOLD_=65536``: what the C library would keep of them, often more than the step needs,
differs from run to run, and three rows show it. A process that wants more than `--limit` GiB is given up, and
its row says so. What `--out` holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trlearner.experiments.bench import record
from trlearner.experiments.bench.workload import conv, sinusoid
from trlearner.experiments.data.files import write_json

import trlearner as tr

# A chunk or a top_k of 0 is none.
BASE: dict[str, Any] = {
    "net": "sinusoid",
    "tasks": 16,
    "steps": 5,
    "hidden": 40,
    "chunk": 0,
    "top_k": 0,
    "queries": 1.0,
    "recompute": False,
    "heap": False,  # whether the C library keeps freed blocks as it likes
}
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
NEAREST = {"top_k": 4, "queries": 0.3, "chunk": 1}
CONV = {"net": "conv", "tasks": 8, "hidden": 32, "chunk": 1}
PANELS: dict[str, list[dict[str, Any]]] = {
    "tasks": [
        *({**BASE, "tasks": tasks} for tasks in (16, 64, 256, 1024, 4096)),
        *({**BASE, "tasks": tasks, "chunk": 64} for tasks in (16, 64, 256, 1024)),
        *({**BASE, "tasks": tasks, "chunk": 8} for tasks in (16, 64, 256, 1024, 4096)),
        *({**BASE, "tasks": tasks, **NEAREST} for tasks in (64, 256, 1024, 4096)),
    ],
    "steps": [
        {**BASE, **CONV, "steps": steps, "recompute": recompute}
        for recompute in (False, True)
        for steps in (1, 2, 5, 10, 20)
    ],
    "hidden": [{**BASE, "hidden": hidden} for hidden in (40, 100, 200, 400, 800)],
}
CASES = [
    *(case for panel in PANELS.values() for case in panel),
    {**BASE, "tasks": 1024, "chunk": 8, "heap": True},
    {**BASE, **CONV, "steps": 20, "heap": True},
    {**BASE, **CONV, "steps": 20, "recompute": True, "heap": True},
]


def peak() -> int:
    """Bytes at the worst moment of this process so far."""
    (most,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(most)


def step(case: dict[str, Any]) -> dict[str, float]:
    """One meta-step in this process: its peak above what it began with, and its seconds."""
    torch.set_num_threads(1)
    run = prepared(case)
    prepared(
        {**case, "tasks": 3, "steps": 1, "hidden": 8, "chunk": 1}
    )()  # what is loaded once is loaded now
    before, started = peak(), time.perf_counter()
    run()
    return {"bytes": peak() - before, "seconds": time.perf_counter() - started}


def prepared(case: dict[str, Any]) -> Callable[[], None]:
    """A meta-step that is ready to run."""
    tasks, steps, hidden = (case[name] for name in ("tasks", "steps", "hidden"))
    layers = [nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    work, net = sinusoid(tasks, steps), nn.Sequential(*layers, nn.Linear(hidden, 1))
    if case["net"] == "conv":
        work = conv("conv", steps, tasks, shots=5, queries=3, filters=hidden)
        net = work.net()
    engine = "channels_last" if case["net"] == "conv" else "batched"
    learner = tr.MAML(net, work.rate, steps, engine=engine, recompute=case["recompute"])
    options = {"top_k": case["top_k"] or None, "queries": case["queries"], **work.relation}
    options["chunk_size"] = case["chunk"] or None
    reg = tr.TRLearner(work.encoder(net), loss_fn=work.loss, **options)
    return lambda: reg(learner, work.batch).loss.backward()


def measured(case: dict[str, Any], limit: float) -> dict[str, Any]:
    """The same in a process of its own, which may have so many GiB of addresses."""
    bound = int(limit * 2**30)
    environment = {n: value for n, value in os.environ.items() if n not in RETURNED}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--step", json.dumps(case)],
        capture_output=True,
        text=True,
        env=environment if case["heap"] else environment | RETURNED,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound)),
    )
    if done.returncode == 0:
        return {**case, **json.loads(done.stdout)}
    if "can't allocate memory" not in done.stderr:
        raise RuntimeError(done.stderr)
    return {**case, "bytes": None, "seconds": None}


def found_in(rows: Sequence[dict[str, Any]], case: dict[str, Any]) -> dict[str, Any] | None:
    """The row of a case, if there is one."""
    return next((row for row in rows if case.items() <= row.items()), None)


def table(rows: Sequence[dict[str, Any]], limit: float) -> str:
    """MiB of every case, in Markdown."""
    columns = (
        "network",
        "tasks",
        "steps",
        "`chunk_size`",
        "`top_k`",
        "`queries`",
        "`recompute`",
        "heap",
    )
    lines = [f"| {' | '.join(columns)} | MiB | s |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        cost = [f"over {limit:g} GiB", "–"]
        if row["bytes"] is not None:
            cost = [f"{row['bytes'] / 2**20:,.0f}", f"{row['seconds']:.2f}"]
        net = "Conv-4" if row["net"] == "conv" else f"1-{row['hidden']}-{row['hidden']}-1"
        asked = [row["chunk"] or "–", row["top_k"] or "–", row["queries"]]
        asked += ["yes" if row["recompute"] else "–", "keeps" if row["heap"] else "–"]
        cells = [net, row["tasks"], row["steps"], *asked, *cost]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory over tasks for each way to ask the models, over steps, and over width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes_of = zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True)
    for axes, (name, cases) in axes_of:
        lines: dict[str, list[tuple[int, float]]] = {}
        for case in cases:
            row = found_in(rows, case)
            if row is not None and row["bytes"] is not None:
                lines.setdefault(label(name, case), []).append((case[name], row["bytes"] / 2**20))
        for text, line in lines.items():
            axes.loglog(*zip(*line, strict=True), "o-", label=text)
        axes.set_xlabel(
            {"tasks": "tasks", "steps": "inner steps of Conv-4", "hidden": "hidden units"}[name]
        )
        values = sorted({case[name] for case in cases})
        axes.set_xticks(values, map(str, values))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize="small", loc="lower right")
        if name == "tasks":
            axes.set_ylabel("MiB of a meta-step")
    figure.savefig(path, dpi=150)


def label(panel: str, case: dict[str, Any]) -> str:
    """What a line of the plot says of its cases."""
    if panel == "steps":
        return f"recompute={case['recompute']}"
    if case["top_k"]:
        return f"top_k={case['top_k']}, queries={case['queries']}"
    return f"chunk_size={case['chunk'] or None}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=24.0, metavar="GIB")
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(step(options.step)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    # What did not fit then may fit into another limit.
    known = [r for r in kept["rows"] if r["bytes"] or kept["limit_gib"] == options.limit]
    rows = [row for row in known if any(found_in([row], case) for case in CASES)]
    for case in sorted(CASES, key=lambda case: case["tasks"]):  # what takes long comes last
        if found_in(rows, case) is not None:
            continue
        rows.append(measured(case, options.limit))
        print(table(rows[-1:], options.limit).splitlines()[-1], flush=True)
        found = {"machine": record.machine(), "versions": record.versions()}
        write_json(options.out, {**found, "limit_gib": options.limit, "rows": rows})
    plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
