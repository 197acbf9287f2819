"""Tunes a memory: tries settings on tasks, and sets those that predict them best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trlearner.memory.by_gaussians import Kernel, kernel_matrix
from trlearner.memory.labels import Labels
from trlearner.memory.leave_one_out import Judges
from trlearner.memory.options import Settings, as_noise
from trlearner.memory.trial import Trier
from trlearner.memory.tuning import Tuned, choose

WITHIN = 1.96
"""95 % of the labels should lie within so many standard deviations."""


def tune_softmax(settings: Settings, trier: Trier) -> Tuned:
    """Sets share and temperature.

    Args:
        settings: To be set.
        trier: Tries settings.
    """
    trial, unit = trier.softmax(settings.mixture, settings.top_k)
    best, loss, alone = choose(trial)
    settings.share, settings.temperature = best.share, unit * best.temperature
    tasks = trial.losses.shape[1]
    return Tuned(best.share, loss, alone, tasks, temperature=settings.temperature)


def tune_gaussian(settings: Settings, trier: Trier, labels: Labels) -> Tuned:
    """Sets share, K, h, σ² and, with a kernel, b; then the scale of deviations.

    Deviations are scaled so that 95 % of the tasks' labels lie within 1.96 of them.

    Args:
        settings: To be set.
        trier: Tries settings.
        labels: Of the remembered tasks.
    """
    if not labels.count:
        for batch, _ in trier.judges:
            labels = labels.with_these(batch.query)
    unit = labels.variance().to(trier.judges[0][0].query.y.device)
    kernel = settings.kernel
    kernel_unit = 1.0 if kernel is None else float(unit.mean()) / _height(kernel, trier.judges)
    trial = trier.gaussian(kernel, unit, kernel_unit)
    best, loss, alone = choose(trial)
    settings.share, settings.spread = best.share, best.spread
    settings.neighbours = max(1, best.neighbours)
    settings.noise = as_noise(best.noise * unit)
    if kernel is not None:
        settings.kernel_scale = best.kernel_scale * kernel_unit
    if best.share:
        ratios = trier.deviations(best, kernel, unit, kernel_unit)
        settings.std_scale = float(ratios.quantile(0.95)) / WITHIN
    return Tuned(
        best.share,
        loss,
        alone,
        trial.losses.shape[1],
        settings.neighbours,
        best.spread,
        float((best.noise * unit).mean()),
        settings.kernel_scale,
    )


def _height(kernel: Kernel, judges: Judges) -> float:
    """The mean of k(x, x)."""
    values: Sequence[Tensor] = [
        kernel_matrix(kernel, batch.support.x, batch.support.x).diagonal(dim1=1, dim2=2).flatten()
        for batch, _ in judges
    ]
    return max(float(torch.cat(list(values)).mean()), torch.finfo(torch.float32).tiny)
