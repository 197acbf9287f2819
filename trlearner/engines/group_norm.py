"""GroupNorm of images that lie channels-last, with a backward pass that does not crash.

On a CPU torch's kernel crashes the process where it is asked for the gradients of weight and bias but not
for that of the images (seen with torch 2.13): behind a frozen layer, or where only the norm adapts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trlearner.engines.instead import Instead


def safe_group_norms() -> Instead:
    """Inside of it, `torch.nn.functional.group_norm` is `group_norm`.

    Example:
        >>> x = torch.randn(4, 6, 5, 5)
        >>> layer = torch.nn.GroupNorm(2, 6)
        >>> with safe_group_norms():
        ...     torch.allclose(layer(x), torch.nn.functional.group_norm(x, 2), atol=1e-6)
        True
    """
    return Instead({torch.nn.functional.group_norm: group_norm})


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``weight * h + bias``, where h is what torch makes of the input; its kernel is given no weight."""
    normalized = torch.nn.functional.group_norm(input, num_groups, eps=eps)
    channels = (1, -1, *[1] * (input.ndim - 2))
    found = normalized if weight is None else normalized * weight.view(channels)
    found = found if bias is None else found + bias.view(channels)
    return found.to(normalized.dtype)
