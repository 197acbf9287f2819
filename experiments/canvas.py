"""What all plots of a study share. Figures are objects: no backend is chosen, no window opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from trlearner.experiments.study import Study
from trlearner.experiments.wording import metric_name

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Told apart by the colour-blind, too (Okabe and Ito)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")


def look(number: int) -> dict[str, Any]:
    """How the line of a number looks; the same in every plot."""
    colours, dashes = len(COLOURS), len(DASHES)
    return {
        "color": COLOURS[number % colours],
        "marker": MARKERS[number % colours],
        "ls": DASHES[number // colours % dashes],
    }


def learners(study: Study) -> dict[str, int]:
    """A number for each, in alphabetic order."""
    return {one: i for i, one in enumerate(sorted({t.config.learner for t in study.trials}))}


def grid(panels: int) -> tuple[Figure, list[Axes]]:
    """Places for so many plots, three in a row."""
    columns = min(3, max(1, panels))
    rows = max(1, math.ceil(panels / columns))
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.5 * rows + 0.6), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in places[panels:]:
        empty.remove()
    return figure, places[:panels]


def legend(figure: Figure, places: Sequence[Axes]) -> None:
    """One for all plots, below them; none for a single kind of line that has no name."""
    found: dict[str, Any] = {}
    for place in places:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found.pop("", None)
    if found:
        widest = 0.6 + 0.085 * max(map(len, found))  # inches, of a mark and its words
        columns = min(len(found), 4, max(1, int(figure.get_figwidth() / widest)))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def metric_label(study: Study, problem: str, split: str) -> str:
    """What the vertical axis shows."""
    metric, better = study.metric(problem)
    return f"{split} {metric_name(metric)}" + (f", {better} is better" if better else "")
