"""Which samples of a task belong together: its classes, or quantile bins of its targets."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Real, Shaped
from torch import Tensor

BINS = 3
"""A regression task's targets fall into so many bins of about equal size."""


def groups(
    targets: Shaped[Tensor, "tasks samples *outputs"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
    ways: int | None = None,
    bins: int = BINS,
) -> Bool[Tensor, "tasks columns groups samples"]:
    """The groups that each column of the targets makes: classes of labels, bins of numbers.

    Args:
        targets: Labels (integers) or numbers.
        mask: True where a sample is real; others belong nowhere.
        ways: The number of classes, for labels.
        bins: The number of bins, for numbers.

    Raises:
        ValueError: Labels, but not how many classes; or a number of them, or of bins, that is none.

    Example:
        >>> groups(torch.tensor([[0.3, 0.1, 0.2]]), bins=3)[0, 0].int()
        tensor([[0, 1, 0],
                [0, 0, 1],
                [1, 0, 0]], dtype=torch.int32)
    """
    columns = targets[..., None] if targets.ndim == 2 else targets.flatten(2)
    columns = columns.mT  # [tasks, columns, samples]
    real = torch.ones_like(columns[:, 0], dtype=torch.bool) if mask is None else mask
    for name, value in (("ways", ways), ("bins", bins)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if columns.is_floating_point():
        member, count = _bin_of(columns, real, bins), bins
    elif ways is None:
        raise ValueError(
            "scores of labelled tasks need the number of classes, got ways=None: build "
            "TaskBatch(..., ways=5)."
        )
    else:
        member, count = columns, ways
    names = torch.arange(count, device=member.device)
    return (member[:, :, None] == names[:, None]) & real[:, None, None]


def _bin_of(
    columns: Real[Tensor, "tasks columns samples"],
    real: Bool[Tensor, "tasks samples"],
    bins: int,
) -> Int[Tensor, "tasks columns samples"]:
    """floor(bins * (below + equal / 2) / n): equal targets share a bin, whatever their order."""
    among = real[:, None, None]
    below = (among & (columns[..., None, :] < columns[..., :, None])).sum(-1)
    equal = (among & (columns[..., None, :] == columns[..., :, None])).sum(-1)
    return bins * (2 * below + equal) // (2 * real.sum(1).clamp(min=1)[:, None, None])
