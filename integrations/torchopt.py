"""Loops on torchopt's differentiable optimizers (github.com/metaopt/torchopt).

Before::

    optimizer.zero_grad()
    start = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
    inner_start = torchopt.extract_state_dict(inner, by="reference")
    losses = []
    for x, y, xq, yq in batch:
        for _ in range(5):
            inner.step(loss_fn(net(x), y))
        losses.append(loss_fn(net(xq), yq))
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(inner, inner_start)
    torch.stack(losses).mean().backward()
    optimizer.step()

After, with the optimizer over ``[*net.parameters(), *reg.parameters()]``::

    optimizer.zero_grad()
    tasks = reg.collect()  # new
    start = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
    inner_start = torchopt.extract_state_dict(inner, by="reference")
    losses = []
    for x, y, xq, yq in batch:
        for _ in range(5):
            inner.step(loss_fn(net(x), y))
        tasks.add(adapted(net), support=(x, y), query=(xq, yq))  # new
        losses.append(loss_fn(net(xq), yq))
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(inner, inner_start)
    (torch.stack(losses).mean() + tasks.penalty()).backward()  # new: + tasks.penalty()
    optimizer.step()

``inner.step`` changes `net` in place and the next task recovers it, so `adapted` keeps the parameters, with
their graph, and copies of the buffers. Call it between the two. `penalty` comes after the last recovery: an
encoder that borrows a part of `net` reads it then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from trlearner.integrations.snapshot import has_graph, snapshot


def adapted(net: nn.Module) -> Callable[[Tensor], Any]:
    """The module as the inner optimizer left it, whatever becomes of it later.

    Raises:
        ValueError: The module is not adapted.
    """
    if torch.is_grad_enabled() and not has_graph(net):
        raise ValueError(
            "net is not adapted: its parameters are those that training started from. Call adapted(net) "
            "after inner.step(loss) and before torchopt.recover_state_dict(net, start)."
        )
    return snapshot(net)
