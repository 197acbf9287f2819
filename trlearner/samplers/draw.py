"""From logits to probabilities, and from probabilities to draws."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def floored(
    logits: Float[Tensor, " tasks"], floor: float, at_most: float = 1.0
) -> Float[Tensor, " tasks"]:
    """``floor / N + (1 - floor) softmax(logits)``, none of them above `at_most`.

    What is cut off goes to the others in proportion, so no task falls below ``floor / N``. With
    ``at_most = 1 / T``, T draws need hold no task twice.

    Example:
        >>> floored(torch.tensor([0.0, 0.0, 9.0]), floor=0.3)
        tensor([0.1001, 0.1001, 0.7998])
        >>> floored(torch.tensor([0.0, 0.0, 9.0]), floor=0.3, at_most=0.5)
        tensor([0.2500, 0.2500, 0.5000])
    """
    found = floor / len(logits) + (1 - floor) * logits.softmax(0)
    return found if at_most >= 1 else _capped(found, at_most)


def _capped(p: Tensor, limit: float) -> Tensor:
    """The largest k are cut to `limit`, for the smallest k that leaves all others below it."""
    order = p.sort(descending=True)
    k = torch.arange(len(p), dtype=p.dtype, device=p.device)
    left = order.values.flip(0).cumsum(0).flip(0)  # the mass of all but the k largest
    scale = (1 - k * limit).clamp(min=0) / left
    # Equal shares may differ by rounding from the limit that they meet.
    cut = int((order.values * scale <= limit * (1 + 1e-12)).int().argmax())
    return (p * scale[cut]).index_fill(0, order.indices[:cut], limit)


def systematic(
    p: Float[Tensor, " tasks"], count: int, generator: torch.Generator
) -> Int[Tensor, " {count}"]:
    """Draws `count` tasks such that task i comes up ``count * p_i`` times on average.

    A comb with teeth ``1 / count`` apart is laid over the tasks' shares, shuffled (Madow 1949): task i
    comes up that many times, rounded down or up. So with ``p_i <= 1 / count`` no task comes up twice.

    `torch.multinomial` without replacement would draw likely tasks less often than that.

    Example:
        >>> systematic(torch.full((4,), 0.25), 4, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2, 3])
    """
    device = generator.device
    order = torch.randperm(len(p), generator=generator, device=device)
    start = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    edges = p.detach().to(device, torch.float64)[order].cumsum(0)
    teeth = (torch.arange(count, dtype=torch.float64, device=device) + start) * (edges[-1] / count)
    # A tooth in between two tasks by rounding alone is the earlier one's.
    hit = torch.searchsorted(edges - 1e-9, teeth, right=True).clamp(max=len(p) - 1)
    return order[hit][torch.randperm(count, generator=generator, device=device)]
