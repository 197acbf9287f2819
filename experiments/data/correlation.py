"""How drug-activity predictions are judged: the squared correlation of each assay."""

from __future__ import annotations

import torch
from torch import Tensor
from trlearner.experiments.data.problem import Metric

import trlearner as tr

CONSTANT = 1e-6
"""Numbers that vary by less than this part of their size are constant."""


def squared_correlation(predictions: Tensor, query: tr.Samples) -> Tensor:
    """The squared Pearson correlation of each task's predictions and targets: ``[tasks]``.

    r2 = cov(p, y)^2 / (var(p) var(y)) over the real queries; 0 where predictions or targets are constant
    or there is one query only, for then nothing is explained. Without any relation, its expected
    value is about 1 / (queries - 1): few queries flatter. NaN predictions give NaN.

    Args:
        predictions: ``[tasks, queries]``, or with one output as a last axis.
        query: Their targets.
    """
    p, y = (t.flatten(1).double() for t in (predictions, query.y))
    real = torch.ones_like(y) if query.mask is None else query.mask.to(y)
    count = real.sum(1)

    def centred(t: Tensor) -> tuple[Tensor, Tensor]:
        around = (t - ((t * real).sum(1) / count)[:, None]) * real
        size = (t.square() * real).sum(1)
        return around, around.square().sum(1) <= CONSTANT**2 * size

    (p, same_p), (y, same_y) = centred(p), centred(y)
    spread = p.square().sum(1) * y.square().sum(1)
    r2 = (p * y).sum(1).square() / spread
    return r2.clamp(max=1.0).masked_fill(same_p | same_y, 0.0).to(predictions)


def median(values: Tensor) -> Tensor:
    """The mean of the two in the middle where their number is even, as NumPy has it."""
    return values.quantile(0.5)


def above(values: Tensor) -> Tensor:
    """How many exceed 0.3, a usual threshold for a useful model of an assay."""
    return (values > 0.3).sum().float()


R2 = Metric(
    "r2",
    "higher",
    squared_correlation,
    {"mean": torch.mean, "median": median, "count above 0.3": above},
)
