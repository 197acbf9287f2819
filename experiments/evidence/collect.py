"""Raw numbers of the runs, in a form that can be kept: one file for each cell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trlearner.experiments.data import files
from trlearner.experiments.evidence.cells import Cell, validation
from trlearner.experiments.presets.config import Config

DIGITS = 5


def collect(cells: Sequence[Cell], root: Path, out: Path) -> None:
    """Writes ``OUT/NAME.json.gz`` for every cell of which anything was run."""
    for cell in cells:
        runs = [
            {"arm": arm, "seed": seed, **_numbers(config, folder)}
            for arm, seed, config, folder in cell.done(root)
        ]
        if runs:
            out.mkdir(parents=True, exist_ok=True)
            record = {"cell": cell.name, "runs": runs, "tuning": _tuning(cell, root)}
            files.write_json(out / file_of(cell), record)


def file_of(cell: Cell) -> str:
    """The name of a cell's file."""
    return cell.name.replace(", ", "-").replace(" ", "-").lower() + ".json.gz"


def _numbers(config: Config, folder: Path) -> dict[str, Any]:
    """Every test task's score, without and with a memory."""
    result = json.loads((folder / "result.json").read_text())
    metric = result["metric"]
    timing = json.loads((folder / "timing.json").read_text())
    (by_metric,) = result["test"].values()  # after the learner's own number of inner steps
    own = by_metric[metric]["tasks"]
    recalled = folder / "recall.json"
    memory: Mapping[str, Any] = json.loads(recalled.read_text()) if recalled.exists() else {}
    return {
        "config": config.record(),
        "metric": metric,
        "better": result["better"],
        "trivial": result.get("trivial", {}).get("test"),  # not in results of old
        "seconds_per_step": timing["seconds_per_step"],
        "gradients": gradients(folder / "events") if config.lam else {},
        "tasks": short(own),
        "memory": {name: memory[name] for name in ("steps", "share", "temperature") if memory},
        "tasks_with_memory": short(memory["test"][metric]["tasks"]) if memory else None,
    }


def gradients(events: Path) -> dict[str, list[float]]:
    """How the term's meta-gradient compares with the learner's own, as the run's monitor saw it.

    Returns:
        Means over the first and the last quarter of what was written, of the cosine between the two and
        of the term's length (times λ) over the other's; nothing where nothing was written.
    """
    if not events.exists():
        return {}
    written = EventAccumulator(str(events))
    written.Reload()
    found = {}
    for name in ("cosine", "ratio"):
        tag = f"trlearner.gradient/{name}"
        if tag in written.Tags()["scalars"]:
            seen = [e.value for e in written.Scalars(tag) if math.isfinite(e.value)]
            some = max(1, len(seen) // 4)
            if seen:
                found[name] = [fmean(seen[:some]), fmean(seen[-some:])]
    return found


def _tuning(cell: Cell, root: Path) -> Sequence[dict[str, Any]]:
    """What was tried, and what came of it on validation tasks."""
    if not cell.tuned:
        return []
    tried = []
    for config in [*cell.rate_candidates(), *cell.term_candidates(root)]:
        folder = root / config.problem / config.hash()
        if (folder / "result.json").exists():
            tried.append({"config": config.record(), "validation": validation(folder)})
    return tried


def short(values: Sequence[float | None]) -> list[float | None]:
    """As they are kept."""
    return [None if v is None else float(f"{v:.{DIGITS}g}") for v in values]
