"""What a better metric costs: every setting's metric over the time of its meta-step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from trlearner.experiments.reporting import canvas
from trlearner.experiments.reporting.interval import Interval
from trlearner.experiments.reporting.study import Cell, Study
from trlearner.experiments.reporting.wording import name

NEAR = (0.1, 0.045)
"""Points share a label when they are nearer than these parts of the plot's width and height, or a point
would lie on the label of another."""


@dataclass(frozen=True)
class Point:
    """A setting.

    Attributes:
        cell: Its runs.
        milliseconds: Of a meta-step.
        level: Of the metric.
    """

    cell: Cell
    milliseconds: float
    level: Interval

    @property
    def lam(self) -> float:
        """The weight of the relation term."""
        return next(iter(self.cell.trials.values())).config.lam


def trade(study: Study, split: str) -> Figure:
    """A plot for each problem; hollow marks are learners without the relation term."""
    drawn = {problem: _points(study, problem, split) for problem in study.problems}
    drawn = {problem: points for problem, points in drawn.items() if points}
    figure, places = canvas.grid(len(drawn))
    numbers = canvas.learners(study)
    for (problem, points), place in zip(drawn.items(), places, strict=True):
        for point in points:
            _draw(place, point, numbers[point.cell.learner])
        _scale(place, points)
        levels = [one.level for one in points]
        canvas.frame(place, [x.mean for x in levels], [x.half_width or 0.0 for x in levels])
        axes = [a for a in study.axes if a != "learner" and study.values(problem, a)[1:]]
        told = f" (beside: {name(axes[0])})" if len(axes) == 1 else ""
        # With more axes, words hide the points.
        for group in _groups(place, points) if told else ():
            _label(place, group, axes[0], numbers[group[0].cell.learner])
        place.set(title=problem, xlabel=f"milliseconds of a meta-step{told}")
        place.set(ylabel=canvas.metric_label(study, problem, split))
    canvas.legend(figure, places)
    return figure


def _points(study: Study, problem: str, split: str) -> list[Point]:
    found = [(cell, cell.seconds(), cell.level(split)) for cell in study.cells(problem)]
    return [
        Point(cell, 1000 * seconds, level)
        for cell, seconds, level in found
        if seconds and level and math.isfinite(level.mean)
    ]


def _draw(place: Axes, point: Point, number: int) -> None:
    style = canvas.look(number)
    at, colour = (point.milliseconds, point.level.mean), style["color"]
    place.errorbar(*at, yerr=point.level.half_width or 0, color=colour, lw=0.8, alpha=0.45)
    fill = colour if point.lam else "white"
    label = name(point.cell.learner) if point.lam else None
    place.plot(*at, color=colour, marker=style["marker"], mfc=fill, ls="", ms=6, label=label)


def _scale(place: Axes, points: Sequence[Point]) -> None:
    """Logarithmic where times differ much; with room at the right for what is written."""
    times = [one.milliseconds for one in points]
    if times and max(times) > 4 * min(times):
        place.set_xscale("log")
        place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        place.xaxis.set_minor_locator(NullLocator())
        low, high = place.get_xlim()
        place.set_xlim(low / 1.1, high * (high / low) ** 0.25)
    else:
        low, high = place.get_xlim()
        place.set_xlim(low - 0.05 * (high - low), high + 0.25 * (high - low))
    place.grid(alpha=0.3)


def _label(place: Axes, group: Sequence[Point], axis: str, number: int) -> None:
    """Writes the settings of some points beside the rightmost of them."""
    values = [one.cell.setting[axis] for one in group if axis in one.cell.setting]
    text = ", ".join(dict.fromkeys(map(name, values)))
    last = max(group, key=lambda one: one.milliseconds)
    at, colour = (last.milliseconds, last.level.mean), canvas.look(number)["color"]
    shift = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    place.annotate(text, at, **shift, fontsize=7.5, color=colour)


def _groups(place: Axes, points: Sequence[Point]) -> list[list[Point]]:
    """Of the same learner and near the first of them; by λ within."""
    to_axes = place.transAxes.inverted()
    groups: list[tuple[np.ndarray, list[Point]]] = []
    for point in sorted(points, key=lambda one: (one.cell.learner, one.level.mean)):
        pixel = place.transData.transform((point.milliseconds, point.level.mean))
        where = to_axes.transform(pixel)
        for start, group in groups:
            alike = group[0].cell.learner == point.cell.learner
            if alike and (np.abs(where - start) < NEAR).all():
                group.append(point)
                break
        else:
            groups.append((where, [point]))
    return [sorted(group, key=lambda one: one.lam) for _, group in groups]
