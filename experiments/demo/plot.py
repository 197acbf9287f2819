"""The demo's pictures. Figures are made as objects: no backend is chosen, no window opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.nn.functional import mse_loss
from trlearner.experiments.demo.comparison import Arm
from trlearner.experiments.demo.regression import HIGH, LOW, Sinusoids

import trlearner as tr

COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Of the learner, the term and the memory; told apart by the colour-blind too."""

WIDTHS = (3.2, 1.4, 2.0)
"""The first is drawn below the others, and must show where they agree."""


def functions(
    models: Mapping[str, tr.MAML | tr.TaskMemory], curves: Sinusoids, support: tr.Samples
) -> Figure:
    """What learners and memories make of some tasks, a memory with its 95 % band: one panel a task.

    Args:
        models: By name.
        curves: The tasks' truth.
        support: What is adapted to, ``[tasks, samples, 1]``.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, (len(curves) + 1) // 2, sharex=True, squeeze=False).flat
    x = torch.linspace(LOW, HIGH, 200)[:, None].expand(len(curves), -1, 1)
    truth = curves.points(x)
    answers = {name: _predictions(model, support, x) for name, model in models.items()}
    for task, panel in zip(range(len(curves)), panels, strict=False):
        panel.plot(x[task], truth[task], color="black", lw=2.5, label="truth")
        for (name, (mean, std)), colour, width in zip(
            answers.items(), COLOURS, WIDTHS, strict=True
        ):
            panel.plot(x[task], mean[task], color=colour, lw=width, label=name)
            if std is not None:
                low, high = ((mean + s * std)[task, :, 0] for s in (-1.96, 1.96))
                band = f"{name}, 95 % band"
                panel.fill_between(x[task, :, 0], low, high, color=colour, alpha=0.2, label=band)
        panel.plot(
            support.x[task], support.y[task], "o", color="black", mfc="white", ms=8, label="support"
        )
        panel.set_title(f"test task {task}: {_name(curves, task)}", fontsize=11)
        panel.set(xlabel="x", ylabel="y")
        panel.grid(alpha=0.25)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def relations(arm: Arm, curves: Sinusoids, batch: tr.TaskBatch) -> Figure:
    """M of some tasks, once in the order of their amplitudes, once of their phases."""
    with torch.no_grad():
        matrix = arm.regularizer(arm.learner, batch).relations
    assert matrix is not None  # an arm with lam=0 has no relations, and is not asked
    figure = Figure(figsize=(15, 7.4), layout="constrained")
    panels = figure.subplots(1, 2)
    orders = {"amplitude A": curves.amplitude.argsort(), "phase b": curves.phase.argsort()}
    for panel, (name, order) in zip(panels, orders.items(), strict=True):
        image = _heatmap(panel, matrix[order][:, order], [_name(curves, i) for i in order.tolist()])
        panel.set_title(f"test tasks in the order of their {name}")
    bar = figure.colorbar(image, ax=panels, shrink=0.85, pad=0.01)
    bar.set_label("relation m (cosine, mean of the heads)")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=110)


def pixels(figure: Figure) -> np.ndarray:
    """A figure as bytes ``[height, width, 3]``, for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@torch.no_grad()
def _predictions(
    model: tr.MAML | tr.TaskMemory, support: tr.Samples, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Predictions, and their standard deviation if there is one."""
    adapted = model.adapt(support, mse_loss)
    if isinstance(model, tr.TaskMemory):
        mean, std = adapted(x, std=True)
        return mean, std
    return adapted(x), None


def _heatmap(panel: Axes, matrix: Tensor, names: Sequence[str]) -> AxesImage:
    """One matrix ``[tasks, models]`` with a value in every cell."""
    lowest = float(matrix.min())  # cosines may crowd near 1; the bar says what the colours span
    image = panel.imshow(matrix.numpy(), cmap="viridis", vmin=lowest, vmax=1.0)
    for i, row in enumerate(matrix.tolist()):
        for j, value in enumerate(row):
            dark = value < (lowest + 1) / 2
            colour = "white" if dark else "black"
            text = f"{value:.2f}"
            panel.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    panel.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(labelsize=8)
    panel.set(xlabel="models", ylabel="tasks")
    return image


def _name(curves: Sinusoids, task: int) -> str:
    return f"A={float(curves.amplitude[task]):.1f} b={float(curves.phase[task]):.1f}"
