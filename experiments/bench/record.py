"""Everything that was measured, for a JSON file: nothing in it depends on the day."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from trlearner.experiments.bench.floor import ENGINE, Floor
from trlearner.experiments.bench.peers import BASE, JAX
from trlearner.experiments.bench.session import Found
from trlearner.experiments.bench.table import relative, summary

PACKAGES = ("trlearner", "torch", "higher", "torchopt", "parallel-metalearn", "jax", "jaxlib")


def record(results: Mapping[str, Found], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, settings, and by workload every contender and what it comes to."""
    return {
        "machine": machine(),
        "versions": versions(),
        "settings": dict(settings),
        "workloads": {name: _workload(found) for name, found in results.items()},
    }


def added(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new`, with the workloads that only `old` has; what they were run with and on stays with them."""
    circumstances = {
        part: old[part] for part in ("machine", "versions", "settings") if old[part] != new[part]
    }
    kept = {
        name: {**circumstances, **found}
        for name, found in old["workloads"].items()
        if name not in new["workloads"]
    }
    return {**new, "workloads": {**kept, **new["workloads"]}}


def times(name: str) -> str:
    """The key of a contender's speed as a multiple of another's."""
    return f"times_{name.replace(' ', '_')}"


def _workload(found: Found) -> dict[str, Any]:
    best = summary(found)
    return {
        "contenders": {name: _contender(found, name) for name in found.rows},
        "left_out": dict(found.left_out),
        "floor": found.floor and _floor(found.floor),
        "best_peer": best.peer and {"name": best.peer[0], "median_ms": best.peer[1]},
        "best_ours": best.ours
        and {
            "name": best.ours[0],
            "median_ms": best.ours[1],
            "times_best_peer": best.ahead(best.peer and best.peer[1]),
            times(JAX): best.ahead(best.jax),
        },
    }


def _floor(floor: Floor) -> dict[str, Any]:
    return {
        "plain_passes": {**vars(floor.plain), "median_ms": floor.timing.median},
        "meta_step": {
            f"{ENGINE}{variant}": {**vars(work), "floor_ms": floor.milliseconds(variant)}
            for variant, work in floor.work.items()
        },
    }


def _contender(found: Found, name: str) -> dict[str, Any]:
    row = found.rows[name]
    return {
        "median_ms": row.timing.median,
        "quartiles_ms": list(row.timing.quartiles),
        "turns": len(row.timing.milliseconds),
        "steps_a_turn": row.timing.steps,
        times(BASE): relative(found, name),
        "times_floor": found.floor and row.timing.median / found.floor.milliseconds(row.variant),
        "first_step_seconds": row.start.seconds,
        "cpu_seconds_a_second": row.timing.busy,
        "gradient_error": row.start.error,
        "gradient_precision": row.start.precision,
    }


def save_case(path: Path, name: str, found: Any, order: Iterable[str]) -> None:
    """Adds a case to a file of cases, in this order; what has another name is dropped."""
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    cases[name] = found
    known = {n: cases[n] for n in order if n in cases}
    text = {"machine": machine(), "versions": versions(), "cases": known}
    path.write_text(json.dumps(text, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def cpu() -> str:
    """The processor's name, as far as the system tells."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Of all that take part; ``None`` where something is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
