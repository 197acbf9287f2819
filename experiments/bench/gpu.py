"""All that a GPU is needed for, in some minutes: is everything computed right there, and how fast?

    python -m trlearner.experiments.bench.gpu --out experiments/results/gpu --minutes 8

Every engine and the relations are compared with engine ``loop`` on the CPU, then our engines are timed, and
at last both is done for what has to be compiled. ``gpu.json`` and ``gpu.md`` are written after every row.
When the minutes are spent, no further row begins, and the report names those left out; a row that has begun
runs to its end. The exit status is 1 where a row failed. ``--device cpu`` tries the script without a GPU.

It needs torch, numpy, einops and jaxtyping, and `higher` for the rows of that name. On a machine with a torch
of its own and no network, either of these lets Python find the package, from the root of the repository:

    pip install --no-deps --no-build-isolation -e .

    mkdir -p build/path/trlearner && ln -sfn "$PWD"/trlearner/* build/path/trlearner/
    ln -sfn "$PWD"/experiments "$PWD"/integrations build/path/trlearner/
    export PYTHONPATH="$PWD/build/path"
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trlearner.experiments.bench import agreement, record, timing
from trlearner.experiments.bench.contender import error, first_gradient, wanted
from trlearner.experiments.bench.ours import PLAIN, REFERENCE, ours
from trlearner.experiments.bench.workload import WORKLOADS
from trlearner.experiments.data.files import write_json

CURVES, IMAGES = ("sinusoid-4", "sinusoid-16", "sinusoid-64"), "conv4-1step"
EAGER = ("batched", "loop", "higher")
TERM, CAST = " + TRLearner", ", bfloat16"
SECONDS = 3.0
"""For the turns of one row of the bench."""

Row = Callable[[], dict[str, Any]]


def rows(device: torch.device, rounds: int) -> Iterator[tuple[str, str, Row]]:
    """The report's part, name and function of every row: what is quick first, what compiles last."""

    def timed(workload: str, engine: str, variant: str, cast: str = "") -> tuple[str, str, Row]:
        run = partial(bench, device, rounds, workload, engine, variant, bool(cast))
        return "bench", f"{workload}, {engine}{variant}{cast}", run

    yield from (("engines", *check) for check in agreement.eager(device))
    yield from (("relations", *check) for check in agreement.relations(device))
    for variant in (PLAIN, TERM):
        yield from (timed(workload, e, variant) for workload in (*CURVES, IMAGES) for e in EAGER)
        yield timed(IMAGES, "channels_last", variant)
    yield from (timed(workload, "batched", TERM, CAST) for workload in (CURVES[-1], IMAGES))
    yield from (timed(workload, "compiled", v) for workload in CURVES for v in (PLAIN, TERM))
    yield from (("engines", *check) for check in agreement.compiled(device))
    yield timed(CURVES[-1], "compiled", TERM, CAST)
    yield timed(IMAGES, "compiled", PLAIN)


def bench(
    device: torch.device, rounds: int, workload: str, engine: str, variant: str, cast: bool
) -> dict[str, Any]:
    """Milliseconds a meta-step, and how far its first gradient is from that of engine `REFERENCE`.

    That error is for looking, for rounding moves values across kinks of ReLU and pooling: `agreement` judges.
    """
    made, clock = ours(WORKLOADS[workload]().to(device), engine, variant), clock_of(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16) if cast else nullcontext():
            made.step()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = clock()
    step()
    first = clock() - started
    off = error(made.gradient(), _gradient(device, workload, variant))
    found = timing.measure({"row": step}, rounds, SECONDS, clock)["row"]
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {
        "median_ms": found.median,
        "quartiles_ms": list(found.quartiles),
        "turns": len(found.milliseconds),
        "first_step_seconds": first,
        "error": off,
        "peak_mib": peak,
        "waits": agreement.waiting(device, step)[1],
        "ok": off == off,  # no NaN
    }


@cache
def _gradient(device: torch.device, workload: str, variant: str) -> list[Tensor]:
    build = partial(ours, engine=REFERENCE, variant=variant)
    return first_gradient(build, WORKLOADS[workload]().to(device))


def clock_of(device: torch.device) -> timing.Step:
    """Seconds, once the device has done all that it was given."""

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return seconds


def machine(device: torch.device) -> dict[str, Any]:
    """The card, its driver and torch."""
    found = {"device": str(device), **record.machine(), "versions": record.versions()}
    found["cuda"] = torch.version.cuda
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    found["card"] = properties.name
    found["memory_gib"] = properties.total_memory / 2**30
    found["capability"] = f"{properties.major}.{properties.minor}"
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)
        found["driver"] = next(iter(told.stdout.split()), None)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs row after row; returns what `gpu.json` holds."""
    started, device = time.monotonic(), torch.device(options.device)
    report: dict[str, Any] = {"machine": machine(device), "minutes": options.minutes}
    report |= {"engines": {}, "relations": {}, "bench": {}, "left_out": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    for part, name, row in rows(device, options.rounds):
        if not wanted(name, part, options.rows):
            continue
        if time.monotonic() - started >= 60 * options.minutes:
            report["left_out"][name] = "no time was left"
            continue
        try:
            report[part][name] = row()
        except ImportError as reason:
            report["left_out"][name] = str(reason)
        except Exception as reason:  # the other rows may tell why
            report[part][name] = {"failed": f"{type(reason).__name__}: {reason}", "ok": False}
        report["seconds"] = time.monotonic() - started
        say(f"{report['seconds']:4.0f} s  {part}: {name}: {report[part].get(name, 'left out')}")
        write(options.out, report)
    write(options.out, report)
    return report


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Both files of the report."""
    write_json(folder / "gpu.json", report)
    (folder / "gpu.md").write_text(markdown(report))


COLUMNS = {
    "error": "error",
    "allowed": "allowed",
    "median_ms": "ms a step",
    "first_step_seconds": "first step, s",
    "peak_mib": "peak, MiB",
    "waits": "waits",
}


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables, one for each part."""
    about, torches = report["machine"], report["machine"]["versions"]
    card = about.get("card", about["cpu"])
    lines = [
        f"{card}, driver {about.get('driver')}, torch {torches['torch']}, CUDA {about['cuda']}"
    ]
    for part in ("engines", "relations", "bench"):
        found = report[part]
        shown = [c for c in COLUMNS if any(c in row for row in found.values())]
        lines += ["", f"| {part} | {' | '.join(COLUMNS[c] for c in shown)} | |"]
        lines += ["|---" * (len(shown) + 2) + "|"]
        for name, row in found.items():
            cells = " | ".join(_cell(row.get(column)) for column in shown)
            verdict = "" if row["ok"] else row.get("failed", "**wrong**").splitlines()[0]
            lines.append(f"| {name} | {cells} | {verdict} |")
    lines += ["", *(f"Left out: {name}: {why}" for name, why in report["left_out"].items())]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report; returns the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="trlearner.experiments.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/gpu"), metavar="FOLDER"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after so many")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each timed row")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="rows by name; '!*compiled*' leaves out, '*@engines' or '!*@bench' picks a part",
    )
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {options.device} needs a CUDA device, and torch {torch.__version__} (built for CUDA: "
            f"{torch.version.cuda}) finds none. Run this on a machine with one, or try it with --device cpu."
        )
    report = run(options)
    bad = [
        n
        for part in ("engines", "relations", "bench")
        for n, r in report[part].items()
        if not r["ok"]
    ]
    print((options.out / "gpu.md").read_text())
    print(f"{len(bad)} rows failed{': ' if bad else '.'}{'; '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
