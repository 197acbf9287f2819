"""A module as it is now, as a callable of its own: what a loop that changes modules in place hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trlearner.base.functional import pure_call


def snapshot(
    module: nn.Module, params: Mapping[str, Tensor] | None = None
) -> Callable[[Tensor], Any]:
    """The module with its present parameters and buffers, whatever becomes of it later.

    Parameters keep their graph. Buffers are copied, and asking updates neither the copies nor the module's:
    the relation term asks every model about every task, which would count each query as often.

    Args:
        module: The adapted module; training or evaluation mode is looked up when it is asked.
        params: Takes the place of the module's own parameters of these names.
    """
    own = dict(module.named_parameters()) | {n: b.clone() for n, b in module.named_buffers()}
    own |= params or {}
    return lambda x: pure_call(module, own, x)


def has_graph(module: nn.Module) -> bool:
    """Whether some parameter was computed from others, as those of an adapted module are."""
    return any(p.grad_fn is not None for p in module.parameters())
