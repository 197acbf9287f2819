"""What all plots of a study share. Figures are objects: no backend is chosen, no window opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from trlearner.experiments.reporting.study import Study
from trlearner.experiments.reporting.wording import metric_name

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


WILD = 100.0
"""Means farther from their median than so many times the median distance are beyond the plot."""

WIDE = 4.0
"""Of an interval so many times the median one is seen at most."""


def frame(place: Axes, means: Sequence[float], halves: Sequence[float]) -> None:
    """Limits that show most of it, whatever diverged or has an interval of two seeds; says what is beyond.

    Args:
        place: Where it is drawn.
        means: Of every setting; not a number where there is none.
        halves: Of their intervals, likewise.
    """
    middle, half = np.asarray(means, dtype=float), np.nan_to_num(np.asarray(halves, dtype=float))
    known = np.isfinite(middle)
    middle, half = middle[known], half[known]
    if not middle.size:
        return
    away = np.abs(middle - np.median(middle))
    tame = away <= WILD * np.median(away) if np.median(away) else np.full(away.shape, True)
    usual = half[tame & (half > 0)]
    seen = np.minimum(half, WIDE * np.median(usual)) if usual.size else half
    low, high = (middle - seen)[tame].min(), (middle + seen)[tame].max()
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    place.set_ylim(low - room, high + room)
    if not tame.all():
        text = f"{(~tame).sum()} beyond"
        place.text(0.98, 0.97, text, transform=place.transAxes, ha="right", va="top", fontsize=8)


def metric_label(study: Study, problem: str, split: str) -> str:
    """What the vertical axis shows."""
    metric, better = study.metric(problem)
    return f"{split} {metric_name(metric)}" + (f", {better} is better" if better else "")
