"""The table of what remembered tasks take off a learner's error, from the raw numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from trlearner.experiments.data.files import read_json
from trlearner.experiments.evidence.cells import CELLS
from trlearner.experiments.evidence.collect import file_of
from trlearner.experiments.evidence.table import LIMIT
from trlearner.experiments.reporting.difference import difference
from trlearner.experiments.reporting.interval import interval

Runs = Sequence[dict[str, Any]]


def write(results: Path) -> str:
    """Reads ``RESULTS/remembered``; writes its ``table.md``, and returns it.

    Raises:
        ValueError: There are no raw numbers.
    """
    folder = results / "remembered"
    classes = [
        "| cell | seeds | own head | nearest class means | remembered heads, share 0.5 | tuned |",
        "|---|---|---|---|---|---|",
    ]
    lines = [
        "| cell | seeds | own | defaults | tuned | difference | change | labels in the 95 % band |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        path = folder / file_of(cell)
        if path.exists():
            runs = read_json(path)["runs"]
            if "class means" in runs[0]:
                classes.append(row_of_classes(cell.name, runs))
                continue
            lines.append(row(cell.name, runs, "tuned"))
            if "kernel tuned" in runs[0]:
                lines.append(row(f"{cell.name}, kernel", runs, "kernel tuned"))
    if len(lines) == 2:
        raise ValueError(f"{folder} holds no raw numbers: run the stage `remember` first.")
    text = "\n".join([*lines, "", *classes] if len(classes) > 2 else lines)
    (folder / "table.md").write_text(text + "\n", "utf-8")
    return text


def row(name: str, runs: Runs, arm: str) -> str:
    """One line of the table: the learner alone, a memory with its defaults, and one that was tuned."""
    own, tuned = scores(runs, "own"), scores(runs, arm)
    found = difference(tuned - own)
    change = 100 * (tuned.mean() / own.mean() - 1)
    half = "" if found.half_width is None else f" ± {found.half_width:.3f}"
    sure = "**" if found.sign() else ""
    covered = [run[arm]["covered"] for run in runs if run[arm]["covered"] is not None]
    band = "none (share 0)"
    if covered:
        band = f"{100 * min(covered):.1f} to {100 * max(covered):.1f} %"
    return (
        f"| {name} | {len(runs)} | {_level(own)}{_lost(runs)} | {_level(scores(runs, 'defaults'))} | "
        f"{_level(tuned)} | {sure}{found.mean:+.3f}{half}{sure} | {change:+.0f} % | {band} |"
    )


def row_of_classes(name: str, runs: Runs) -> str:
    """One line of the table for tasks with classes of their own; accuracies in per cent."""
    levels = [
        str(interval((100 * scores(runs, arm).mean(1)).tolist()))
        for arm in ("own", "class means", "defaults")
    ]
    shares = [run["tuned"]["settings"]["share"] for run in runs]
    return f"| {name} | {len(runs)} | {' | '.join(levels)} | share {max(shares):g} |"


def scores(runs: Runs, arm: str) -> np.ndarray:
    """``[seeds, tasks]``; an error counts for at most `LIMIT` times that of the best constant answer."""
    raw = np.array([run[arm]["tasks"] for run in runs], dtype=float)
    return raw if runs[0]["better"] == "higher" else np.fmin(raw, limit(runs))


def limit(runs: Runs) -> float:
    """The most that an error counts for."""
    return float(LIMIT * runs[0]["constant"]["constant"][runs[0]["metric"]]["mean"])


def _level(values: np.ndarray) -> str:
    return str(interval(values.mean(1).tolist()))


def _lost(runs: Runs) -> str:
    if runs[0]["better"] == "higher":
        return ""
    raw = np.array([run["own"]["tasks"] for run in runs], dtype=float)
    lost = int((~(raw <= limit(runs))).sum())
    return f" ({lost} task{'s' if lost > 1 else ''} exploded)" if lost else ""
