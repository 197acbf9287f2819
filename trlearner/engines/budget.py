"""How many models may answer at once within a budget of memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trlearner.base.functional import random_state_kept

SHARE = 0.5
"""Of the memory that is free, if no budget is given; ranks of one machine divide it among them."""

TIMES = 3
"""What one needs with its backward pass, and is lost between blocks, over what its forward pass makes."""


def within_budget(ask: Callable[[slice], Tensor], total: int, budget: int | None, like: Any) -> int:
    """How many of `total` answers at once fit, going by what the first one takes.

    Args:
        ask: For some of the answers.
        total: How many there are.
        budget: In bytes; by default half of what is free where the answers will be, divided by
            ``LOCAL_WORLD_SIZE`` on a CPU that several ranks share (torchrun sets it).
        like: Is where the answers will be.

    Example:
        >>> x = torch.zeros(8, 1000)
        >>> within_budget(lambda part: x[part] + 1.0, 8, budget=36_000, like=x)
        3
    """
    counted = _Made()
    with random_state_kept(like), torch.no_grad(), counted:
        ask(slice(0, 1))
    if budget is None:
        ranks = 1 if like.is_cuda else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        budget = int(SHARE * free_memory(like.device)) // ranks
    return max(1, min(total, budget // max(1, TIMES * counted.bytes)))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device: within a container's limit, and from torch's own cache, too.

    Raises:
        ValueError: The system does not say.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo") as lines:
            free = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
        return min(free, within_container())
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        raise ValueError(
            "chunk_size='auto' cannot tell here how much memory is free. Pass memory_budget=, in bytes."
        ) from None


def within_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What is left of a control group's limit; without one, more than there can be."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # there is none, or it says "max"
        return sys.maxsize


class _Made(TorchDispatchMode):
    """Counts the bytes of all tensors that are made, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for made in _tensors(found):
            if made.untyped_storage().data_ptr() not in given:
                self.bytes += made.untyped_storage().nbytes()
        return found


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
