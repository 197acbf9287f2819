"""Which of a task's samples tell most about it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trlearner.tasks.coding import leverage, unit_rows
from trlearner.tasks.samples import Samples

Choose = Callable[[Tensor, Samples], Tensor]
"""``choose(features [tasks, samples, features], support) -> positions [tasks, chosen]``."""
Select = float | int | Choose

ROUND = 2**16
"""Leverages are told apart to one part in so many; the earlier of two that are alike comes first."""


def check_select(select: Select | None) -> None:
    """Refuse what selects no samples.

    Raises:
        ValueError: Saying what does.
    """
    share = isinstance(select, float) and 0 < select <= 1
    count = isinstance(select, int) and not isinstance(select, bool) and select >= 1
    if not (select is None or share or count or callable(select)):
        raise ValueError(
            "select must be a share in (0.0, 1.0] of each task's support samples, a number of them, a "
            f"function (features, support) -> positions, or None, got {select!r}."
        )


def select_samples(
    select: Select, features: Float[Tensor, "tasks samples features"], support: Samples
) -> Samples:
    """The most telling samples of every task.

    Args:
        select: A share of each task's samples, a number of them, or a function that returns positions.
        features: Of the samples.
        support: The samples.

    Example:
        >>> support = Samples(torch.rand(4, 10, 2), torch.rand(4, 10, 1))
        >>> select_samples(0.3, support.x, support).x.shape
        torch.Size([4, 3, 2])
    """
    if callable(select):
        positions = select(features, support)
        if positions.dtype != torch.int64 or positions.shape[:-1] != features.shape[:1]:
            raise ValueError(
                "select must return positions [tasks, chosen], whole numbers (torch.int64) for "
                f"{len(features)} tasks, got {positions.dtype} of shape {list(positions.shape)}."
            )
        return support.choose(positions)
    samples = features.shape[1]
    whole = isinstance(select, int)
    count = min(int(select), samples) if whole else math.ceil(select * samples)
    chosen = support.choose(telling(features, support)[:, :count])
    if whole or support.mask is None or chosen.mask is None:
        return chosen
    # A share is one of the real samples, however many are padded.
    share = (select * support.mask.sum(1, keepdim=True)).ceil()
    mask = chosen.mask & (torch.arange(count, device=features.device) < share)
    return Samples.unchecked(chosen.x, chosen.y, mask, chosen.ways)


def telling(
    features: Float[Tensor, "tasks samples features"], support: Samples
) -> Int[Tensor, "tasks samples"]:
    """The positions of every task's samples, the most telling first and padding last.

    A sample tells as much as the coding rate of its task's features hangs on it (see `leverage`). Where
    tasks have `ways`, every class's first sample comes before any class's second.

    Args:
        features: Of the samples.
        support: The samples.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]])
        >>> int(telling(x, Samples(x, x))[0, 0])
        2
    """
    # Samples that tell alike must not be ordered by rounding, which differs between devices.
    worth = (leverage(unit_rows(features, support.mask)) * ROUND).round()
    key = -worth
    if support.ways is not None and support.y.ndim == 2:
        key = key + 2 * ROUND * _rank_in_class(worth, support)
    if support.mask is not None:
        key = torch.where(support.mask, key, torch.inf)
    return key.argsort(dim=1, stable=True)


def _rank_in_class(worth: Tensor, support: Samples) -> Tensor:
    """How many real samples of its own class tell more than a sample; of equals, the earlier ones."""
    one, other = worth[:, :, None], worth[:, None, :]
    places = torch.arange(worth.shape[1], device=worth.device)
    ahead = (other > one) | ((other == one) & (places[None, :] < places[:, None]))
    alike = support.y[:, :, None] == support.y[:, None, :]
    if support.mask is not None:
        alike = alike & support.mask[:, None, :]
    return (alike & ahead).sum(-1)
