"""The evidence table, from the raw numbers alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from trlearner.experiments.data.files import read_json
from trlearner.experiments.evidence import plot
from trlearner.experiments.evidence.cells import CELLS
from trlearner.experiments.reporting.difference import difference, half_width
from trlearner.experiments.reporting.interval import interval

ARMS = {
    "paper": ("paper", "tasks"),
    "term": ("term", "tasks"),
    "memory": ("alone", "tasks_with_memory"),
    "term and memory": ("term", "tasks_with_memory"),
}
"""What is compared with the learner alone: whose runs, and which of their scores."""

LIMIT = 10
"""An error counts for at most so many times what the best constant answer has on average."""

Values = dict[int, np.ndarray]
"""By seed, a score of every test task."""


@dataclass(frozen=True)
class Compared:
    """An arm's paired difference from the learner alone; positive is better.

    Attributes:
        mean: Over seeds and tasks; ``None`` where nothing was run.
        half: Of the 95 % interval; ``None`` for fewer than two seeds.
        low: Percentile 2.5 of the bootstrap over seeds and tasks.
        high: Percentile 97.5.
        sign: Of the mean, where the interval excludes zero; else 0.
        corrected: The same after Bonferroni's correction for all comparisons of the table.
        seeds: So many pairs.
    """

    mean: float | None
    half: float | None = None
    low: float | None = None
    high: float | None = None
    sign: int = 0
    corrected: int = 0
    seeds: int = 0


Row = tuple[str, int, Sequence[dict[str, Any]], dict[str, Compared]]
"""A cell's name, how many seeds it should have, its runs, and its arms by name."""


def write(results: Path) -> str:
    """Reads the raw numbers of a folder; writes table.md, table.json and pictures; returns the first."""
    records = {
        record["cell"]: record for record in map(read_json, sorted(results.glob("*.json.gz")))
    }
    if not records:
        raise ValueError(f"{results} holds no raw numbers: run the stages before this one.")
    comparisons = len(CELLS) * len(ARMS)
    rows = []
    for cell in CELLS:
        runs = records.get(cell.name, {}).get("runs", [])
        arms = {name: compare(runs, *source, comparisons) for name, source in ARMS.items()}
        rows.append((cell.name, cell.seeds, runs, arms))
    text = "\n".join(_lines(rows))
    (results / "table.md").write_text(text + "\n", "utf-8")
    told = {name: {arm: vars(c) for arm, c in arms.items()} for name, _, _, arms in rows}
    (results / "table.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    levels = {
        name: float(np.mean(list(base.values())))
        for name, _, runs, _ in rows
        if (base := values(runs, "alone", "tasks"))
    }
    plot.save(results, levels)
    return text


def compare(runs: Sequence[dict[str, Any]], arm: str, scores: str, comparisons: int) -> Compared:
    """An arm against the learner alone, on the seeds that both have."""
    base, other = values(runs, "alone", "tasks"), values(runs, arm, scores)
    seeds = sorted(base.keys() & other.keys())
    if not seeds:
        return Compared(None)
    sign = 1 if runs[0]["better"] == "higher" else -1
    table = sign * np.stack([other[s] - base[s] for s in seeds])
    if not np.isfinite(table).all():
        return Compared(math.nan, seeds=len(seeds))
    found = difference(table)
    strict = half_width(table, 1 - 0.05 / comparisons)
    sure = strict is not None and abs(found.mean) > strict
    return Compared(
        found.mean,
        found.half_width,
        found.low,
        found.high,
        found.sign(),
        found.sign() if sure else 0,
        len(seeds),
    )


def values(runs: Sequence[dict[str, Any]], arm: str, scores: str) -> Values:
    """Scores of an arm.

    Errors are limited: one task of a thousand, at which inner steps explode, would outweigh all others.
    """
    found: Values = {}
    for run in runs:
        if run["arm"] == arm and run[scores] is not None:
            raw = np.array([math.nan if v is None else v for v in run[scores]], dtype=float)
            found[run["seed"]] = np.fmin(raw, limit(runs)) if run["better"] == "lower" else raw
    return found


def limit(runs: Sequence[dict[str, Any]]) -> float:
    """The most that an error of a cell's runs counts for."""
    run = next(run for run in runs if run["trivial"])
    return float(LIMIT * run["trivial"]["constant"][run["metric"]]["mean"])


def exploded(runs: Sequence[dict[str, Any]], arm: str, scores: str) -> int:
    """Test tasks with an error beyond the limit, of all runs of an arm."""
    return sum(
        v is None or v > limit(runs)
        for run in runs
        if run["arm"] == arm and run[scores] is not None and run["better"] == "lower"
        for v in run[scores]
    )


def _lines(rows: Sequence[Row]) -> list[str]:
    heads = "".join(f" {name} |" for name in ARMS)
    lines = [f"| cell | seeds | alone |{heads}", "|---|---|---|" + "---|" * len(ARMS)]
    for name, planned, runs, arms in rows:
        base = values(runs, "alone", "tasks")
        if not base:
            lines.append(f"| {name} | 0 of {planned} | not run |" + " |" * len(ARMS))
            continue
        scale = 100 if runs[0]["metric"] == "accuracy" else 1
        level = interval([scale * float(v.mean()) for v in base.values()])
        unit = {"accuracy": " %", "mse": "", "r2": ""}.get(runs[0]["metric"], "")
        unit += _lost(exploded(runs, "alone", "tasks"))
        cells = "".join(
            f" {cell_text(c, scale, runs[0]['better'])}{_fewer(c.seeds, len(base))}"
            f"{_lost(exploded(runs, *ARMS[arm]))} |"
            for arm, c in arms.items()
        )
        lines.append(f"| {name} | {len(base)} of {planned} | {level}{unit} |{cells}")
    lines += ["", *_tally(rows), "", *_agreement(rows)]
    return lines


def _fewer(seeds: int, planned: int) -> str:
    return f" ({seeds} seeds)" if 1 < seeds < planned else ""


def _lost(tasks: int) -> str:
    return f" ({tasks} task{'s' if tasks > 1 else ''} exploded)" if tasks else ""


def cell_text(c: Compared, scale: float, better: str) -> str:
    """The change of the score itself, bold where it is sure, with a star where it stays so corrected."""
    if c.mean is None:
        return "not run"
    if c.mean != c.mean:
        return "diverged"
    change = scale * (c.mean if better == "higher" else -c.mean)
    if c.mean == 0 and not c.half:
        return "0 (never used)" if c.seeds > 1 else "0 (one seed)"
    digits = max(0, 2 - math.floor(math.log10(max(abs(change), 1e-9)))) if scale == 1 else 1
    text = f"{change:+.{min(digits, 4)}f}"
    if c.half is None:
        return f"{text} (one seed)"
    text += f" ± {scale * c.half:.{min(digits, 4)}f}"
    word = {1: " better", -1: " worse", 0: ""}[c.sign]
    return f"**{text}**{word}{'*' if c.corrected else ''}" if c.sign else text


def _tally(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| | better | no difference | worse | one seed or diverged | not run |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        all_ = [arms[arm] for *_, arms in rows]
        known = [c for c in all_ if c.half is not None]
        unsure = [c for c in all_ if c.mean is not None and c.half is None]
        counts = [sum(c.sign == s for c in known) for s in (1, 0, -1)]
        missing = sum(c.mean is None for c in all_)
        lines.append(
            f"| {arm} | {counts[0]} | {counts[1]} | {counts[2]} | {len(unsure)} | {missing} |"
        )
    return lines


def _agreement(rows: Sequence[Row]) -> list[str]:
    """Of the paper's term: its meta-gradient beside the learner's own, early and late in training."""
    lines = [
        "| paper's term | cosine with the own gradient, early | late | length over the own, early | late |",
        "|---|---|---|---|---|",
    ]
    for name, _, runs, _ in rows:
        seen = [
            run["gradients"] for run in runs if run["arm"] == "paper" and len(run["gradients"]) == 2
        ]
        if seen:
            means = (
                float(np.mean([one[kind][when] for one in seen]))
                for kind in ("cosine", "ratio")
                for when in (0, 1)
            )
            lines.append(f"| {name} | " + " | ".join(f"{m:.2f}" for m in means) + " |")
    return lines if len(lines) > 2 else []
