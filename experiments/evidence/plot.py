"""The evidence table as a picture: each arm's change relative to the learner alone, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

COLOURS = {
    "paper": "#888888",
    "term": "#4477aa",
    "memory": "#ee6677",
    "term and memory": "#aa3377",
}


def forest(told: Mapping[str, Mapping[str, Any]], levels: Mapping[str, float]) -> Figure:
    """Per cent of the learner's own score, better to the right, with 95 % intervals.

    Args:
        told: By cell and arm, what `table.write` says of it.
        levels: The score of each cell's learner alone.
    """
    cells = [cell for cell in told if cell in levels]
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(cells)), layout="constrained")
    axes = figure.subplots()
    step = 0.8 / len(COLOURS)
    for k, (arm, colour) in enumerate(COLOURS.items()):
        points = [
            (i + k * step, 100 * c["mean"] / levels[cell], 100 * (c["half"] or 0) / levels[cell])
            for i, cell in enumerate(cells)
            if (c := told[cell][arm])["mean"] is not None and c["mean"] == c["mean"]
        ]
        if points:
            y, x, half = zip(*points, strict=True)
            axes.errorbar(x, y, xerr=half, fmt="o", ms=4, lw=1.5, color=colour, label=arm)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks([i + 0.3 for i in range(len(cells))], cells)
    axes.invert_yaxis()
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -100), min(high, 100))  # of few seeds, intervals can be wider than that
    axes.set_xlabel("better than the learner alone by, % of its score (95 % intervals)")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save(results: Path, levels: Mapping[str, float]) -> Sequence[Path]:
    """Draws what table.json of a folder says, beside it."""
    told = json.loads((results / "table.json").read_text())
    paths = [results / "table.png", results / "table.svg"]
    with rc_context({"svg.hashsalt": "trlearner"}):
        figure = forest(told, levels)
        figure.savefig(paths[0], dpi=130)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
