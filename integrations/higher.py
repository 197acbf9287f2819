"""Loops on `higher` (github.com/facebookresearch/higher).

Before::

    optimizer.zero_grad()
    for x, y, xq, yq in batch:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(5):
                diffopt.step(loss_fn(fnet(x), y))
            (loss_fn(fnet(xq), yq) / len(batch)).backward()
    optimizer.step()

After, with the optimizer over ``[*net.parameters(), *reg.parameters()]``::

    optimizer.zero_grad()
    tasks = reg.collect()  # new
    for x, y, xq, yq in batch:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(5):
                diffopt.step(loss_fn(fnet(x), y))
            loss = loss_fn(fnet(xq), yq)
            tasks.add(
                adapted(fnet), support=(x, y), query=(xq, yq), loss=loss
            )  # was its backward()
    tasks.backward()  # new: of the losses' mean, and the relation term
    optimizer.step()

higher's functional model stays usable after its context, and its buffers are its own, so `adapted` only
looks for what is forgotten most: ``copy_initial_weights=False``. With the default, True, the inner loop
starts from copies, and *no gradient reaches the model's own parameters*: nothing fails, nothing is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def adapted(fnet: nn.Module) -> Callable[[Tensor], Any]:
    """The functional model, once it is seen to be connected to the model it was made from.

    Raises:
        TypeError: It is none of higher's.
        ValueError: No gradient would reach the model's parameters.
    """
    if getattr(fnet, "fast_params", None) is None:
        raise TypeError(
            "fnet must be the functional model of higher.innerloop_ctx(...) as (fnet, diffopt), got "
            f"{type(fnet).__name__}."
        )
    if not torch.is_grad_enabled():
        return fnet
    if not fnet.track_higher_grads:
        raise ValueError(
            "innerloop_ctx was given track_higher_grads=False, which keeps no graph of the inner loop. "
            "Leave it out where you train."
        )
    if all(p.grad_fn is None for p in fnet.parameters(time=0)):  # type: ignore[call-arg]
        raise ValueError(
            "the inner loop started from copies of the parameters, so no gradient reaches the model. Pass "
            "copy_initial_weights=False to innerloop_ctx. If copies are meant (you learn rates only), add "
            "the model itself: tasks.add(fnet, ...)."
        )
    return fnet
