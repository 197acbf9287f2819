"""The metric over whatever varies: lines, with the intervals over seeds as bands, or bars of few values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from trlearner.experiments.reporting import canvas
from trlearner.experiments.reporting.study import Cell, Setting, Study
from trlearner.experiments.reporting.tables import rows_of
from trlearner.experiments.reporting.wording import name

Range = tuple[float, float]
"""A mean and half of its interval; not a number where there is none."""


CROWD = 4
"""Bands of more lines than these are fainter, or they would hide each other."""

FEW = 4
"""Of fewer values than these the intervals are bars: a band would show what nobody has run."""

APART = 4.0
"""Points between the bars of two lines."""


@dataclass(frozen=True)
class Panel:
    """One plot of several: a problem, and one of its learners where lines differ in more than that."""

    problem: str
    title: str
    lines: Sequence[Setting]


def by_axis(study: Study, axis: str, split: str, base: Setting | None = None) -> Figure:
    """The metric over one axis.

    Args:
        study: The runs.
        axis: What varies from left to right.
        split: ``"test"`` or ``"shifted"``.
        base: If given, the paired difference from this baseline is shown instead.
    """
    panels = [
        panel
        for problem in study.problems
        if any(cell.level(split) for cell in study.cells(problem))
        for panel in _panels(study, problem, axis)
    ]
    labels = _labels(study, panels)
    figure, places = canvas.grid(len(panels))
    for panel, place in zip(panels, places, strict=True):
        values = study.values(panel.problem, axis)
        positions = _axis(place, axis, values)
        shown: list[Range] = []
        for i, line in enumerate(panel.lines):
            cells = [study.cell(panel.problem, {**line, axis: value}) for value in values]
            ranges = [_range(study, panel.problem, cell, base, split) for cell in cells]
            shown += ranges
            text = _text(line, panel)
            if len(values) < FEW:
                aside = APART * (i - (len(panel.lines) - 1) / 2)
                _bars(place, positions, ranges, labels[text], text, aside)
                continue
            _band(place, positions, ranges, labels[text], text, crowded=len(panel.lines) > CROWD)
        if shown:
            canvas.frame(place, *zip(*shown, strict=True))
        label = canvas.metric_label(study, panel.problem, split)
        if base:
            place.axhline(0, color="black", lw=1, ls=":")
            given = ", ".join(f"{name(k)} = {name(v)}" for k, v in base.items())
            label = label.replace(",", f"\nminus that with {given},", 1)
        place.set(title=panel.title, xlabel=name(axis), ylabel=label)
    canvas.legend(figure, places)
    return figure


def _panels(study: Study, problem: str, axis: str) -> list[Panel]:
    others = [a for a in study.axes if a != axis and len(study.values(problem, a)) > 1]
    lines = rows_of(study, problem, others)
    if not study.values(problem, axis)[1:]:
        return []
    if "learner" not in others:
        return [Panel(problem, f"{problem}: {name(study.learner(problem))}", lines)]
    if len(others) == 1:
        return [Panel(problem, problem, lines)]
    learners = study.values(problem, "learner")
    return [
        Panel(problem, f"{problem}: {name(one)}", [x for x in lines if x.get("learner") == one])
        for one in learners
    ]


def _text(line: Setting, panel: Panel) -> str:
    """What tells a line from others of its panel."""
    own = {n: v for n, v in line.items() if n != "learner" or panel.title == panel.problem}
    words = [name(v) if n == "learner" else f"{name(n)} = {name(v)}" for n, v in own.items()]
    return ", ".join(words)


def _labels(study: Study, panels: Sequence[Panel]) -> dict[str, int]:
    """A number for each kind of line: it looks the same in every panel, and a learner in every plot."""
    texts = [_text(line, panel) for panel in panels for line in panel.lines]
    first = [name(learner) for learner in canvas.learners(study)]
    if not set(texts) <= set(first):
        first = []
    return {text: i for i, text in enumerate(dict.fromkeys([*first, *texts]))}


def _axis(place: Axes, axis: str, values: Sequence[Any]) -> list[float]:
    """Where values lie, and how the axis tells."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    positions = [float(v) for v in values] if numbers else [float(i) for i in range(len(values))]
    positive = [p for p in positions if p > 0]
    if axis == "lam" and positive:
        place.set_xscale("symlog", linthresh=min(positive), linscale=0.6)
    elif numbers and min(positions) > 0 and max(positions) > 15 * min(positions):
        place.set_xscale("log")
    place.xaxis.set_major_locator(FixedLocator(positions))
    place.xaxis.set_major_formatter(FixedFormatter([name(v) for v in values]))
    place.xaxis.set_minor_locator(NullLocator())
    if len(values) > 6:
        place.tick_params(axis="x", labelrotation=45)
    place.grid(alpha=0.3)
    return positions


def _range(
    study: Study, problem: str, cell: Cell | None, base: Setting | None, split: str
) -> Range:
    """What is drawn of a cell: its level, or its difference from the baseline."""
    found: Any = cell.level(split) if cell else None
    if cell and base:
        other = study.baseline(problem, cell, base)
        if other is cell and found:
            return 0.0, 0.0
        found = cell.against(other, split) if other else None
    if found is None:
        return math.nan, math.nan
    return found.mean, math.nan if found.half_width is None else found.half_width


def _bars(
    place: Axes,
    positions: Sequence[float],
    ranges: Sequence[Range],
    number: int,
    label: str,
    aside: float,
) -> None:
    """A line with a bar at each value, so many points to the right of it."""
    means, halves = np.array(ranges).T
    style = canvas.look(number)
    figure = place.get_figure(root=True)
    assert figure is not None
    shift = place.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
    bar = {"color": style["color"], "ls": "", "lw": 1, "capsize": 3}
    place.errorbar(positions, means, np.nan_to_num(halves), **bar, transform=shift)
    place.plot(positions, means, **style, ms=5, lw=1.4, label=label, transform=shift)
    # Drawn with a transform of their own, they do not count for the limits.
    known = np.isfinite(means)
    place.update_datalim(np.stack([positions, means], 1)[known])
    place.margins(x=0.12)
    place.autoscale_view()


def _band(
    place: Axes,
    positions: Sequence[float],
    ranges: Sequence[Range],
    number: int,
    label: str,
    crowded: bool,
) -> None:
    """A line with its band; it has a gap where a cell is missing."""
    means, halves = np.array(ranges).T
    style = canvas.look(number)
    colour = style["color"]
    low, high, alpha = means - halves, means + halves, 0.08 if crowded else 0.18
    place.fill_between(positions, low, high, color=colour, alpha=alpha, lw=0)
    for edge in () if crowded else (low, high):  # tell bands that lie over each other
        place.plot(positions, edge, color=colour, lw=0.7, alpha=0.6)
    known = np.isfinite(np.concatenate([[np.nan], means, [np.nan]]))
    alone = known[1:-1] & ~known[:-2] & ~known[2:]  # between gaps, where a band has no width
    if alone.any():
        at = np.array(positions)[alone]
        place.errorbar(at, means[alone], halves[alone], color=colour, ls="", lw=1, capsize=3)
    place.plot(positions, means, **style, ms=5, lw=1.8, label=label)
