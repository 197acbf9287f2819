"""Looking at autograd's graph without running it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def clock() -> int:
    """Every node of autograd's graph that this thread makes from now on has a higher number."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).mul(1).grad_fn
    return int(node._sequence_nr())


def backward_has_passed(output: Tensor, started: int) -> bool:
    """Whether a backward pass has freed the graph of what `output` was computed from.

    Args:
        output: Computed after `started`.
        started: `clock` of then; older nodes are looked at.
    """
    seen: set[Any] = set()
    stack = [output.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        old = node._sequence_nr() <= started
        if old and (freed := _freed(node)) is not None:
            if freed:
                return True
            continue  # what lies below an intact node is not of interest
        stack.extend(parent for parent, _ in node.next_functions)
    return False


def _freed(node: Any) -> bool | None:
    """Whether what a node saved is gone; nothing is known of one that saved no tensor."""
    for name in dir(node):
        if name == "saved_tensors" or (
            name.startswith("_saved_") and not name.startswith("_saved_self_s")
        ):
            try:
                value = getattr(node, name)
            except RuntimeError as error:
                if "freed" in str(error):
                    return True
                continue
            if isinstance(value, Tensor) or (isinstance(value, tuple) and value):
                return False
    return None
