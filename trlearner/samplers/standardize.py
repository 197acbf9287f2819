"""Scores in units of their own spread, as it has been of late."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

HORIZON = 20
"""So many refreshes back the mean and the spread reach, for scores drift as a learner learns."""
LIMIT = 4.0
"""No task lies further from the mean than this, in standard deviations."""


class Running(NamedTuple):
    """The mean and the mean square of each score, over tasks seen of late.

    Attributes:
        mean: ``[scores]``.
        square: ``[scores]``, about `mean`'s origin.
        updates: How many there have been.
    """

    mean: Tensor
    square: Tensor
    updates: int


def start(scores: int) -> Running:
    """Before any task was seen."""
    return Running(torch.zeros(scores), torch.zeros(scores), 0)


def seen(running: Running, scores: Float[Tensor, "tasks scores"]) -> Running:
    """With these tasks taken in: a plain average at first, an exponential one from `HORIZON` on.

    Args:
        running: So far.
        scores: As they are; tasks are left out whose scores, or their squares, are not finite.
    """
    good = scores.square().isfinite().all(1, keepdim=True)
    if not good.any():
        return running
    count = good.sum()
    mean = torch.where(good, scores, 0.0).sum(0) / count
    square = torch.where(good, scores, 0.0).square().sum(0) / count
    step = 1 / min(running.updates + 1, HORIZON)
    return Running(
        torch.lerp(running.mean.to(mean), mean, step),
        torch.lerp(running.square.to(square), square, step),
        running.updates + 1,
    )


def standardized(
    running: Running, scores: Float[Tensor, "tasks scores"]
) -> Float[Tensor, "tasks scores"]:
    """``(score - mean) / spread``, within `LIMIT`; 0 for what is not finite or does not vary.

    Example:
        >>> scores = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> standardized(seen(start(2), scores), scores)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    mean, square = running.mean.to(scores), running.square.to(scores)
    variance = square - mean.square()
    # Below this, a difference is rounding.
    varies = variance > 1e-6 * square
    spread = torch.where(varies, variance, 1.0).sqrt()
    found = torch.where(varies, (scores - mean) / spread, 0.0)
    return found.nan_to_num(0.0, 0.0, 0.0).clamp(-LIMIT, LIMIT)
