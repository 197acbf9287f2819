"""Answers of many models within a bound on memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Part = slice


def mixed_in_chunks(
    ask: Callable[[Part], Tensor],
    mixed: Callable[[Tensor, Part], Tensor],
    total: int,
    size: int | None,
    adds: bool,
) -> Tensor:
    """``mixed(ask(all), all)``, keeping the activations of at most `size` answers at once.

    The others are computed again in the backward pass, with the same random draws. Where mixtures add up,
    not even the answers are kept.

    Args:
        ask: For some of the answers, along their first axis.
        mixed: For the mixture of some of the answers.
        total: How many answers there are.
        size: How many at once; ``None`` for all.
        adds: Whether the mixture of all is the sum of the mixtures of parts.

    Example:
        >>> x = torch.arange(6.0)
        >>> mixed_in_chunks(lambda part: x[part] ** 2, lambda y, part: y.sum(), 6, 4, adds=True)
        tensor(55.)
    """
    whole = slice(0, total)
    if size is None or size >= total:
        return mixed(ask(whole), whole)
    parts = [slice(first, min(first + size, total)) for first in range(0, total, size)]
    if not adds:
        return mixed(torch.cat([_again(ask, part) for part in parts]), whole)

    def answer(part: Part) -> Tensor:
        return mixed(ask(part), part)

    found = _again(answer, parts[0])
    for part in parts[1:]:
        found = found + _again(answer, part)
    return found


def _again(function: Callable[[Part], Tensor], part: Part) -> Tensor:
    found: Tensor = checkpoint(function, part, use_reentrant=False)
    return found
