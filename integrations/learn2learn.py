"""Loops on learn2learn (github.com/learnables/learn2learn).

Before::

    optimizer.zero_grad()
    for x, y, xq, yq in batch:
        learner = maml.clone()
        for _ in range(5):
            learner.adapt(loss_fn(learner(x), y))
        loss_fn(learner(xq), yq).backward()
    for p in maml.parameters():
        p.grad.mul_(1.0 / len(batch))
    optimizer.step()

After, with the optimizer over ``[*maml.parameters(), *reg.parameters()]``::

    optimizer.zero_grad()
    tasks = reg.collect()  # new
    for x, y, xq, yq in batch:
        learner = maml.clone()
        for _ in range(5):
            learner.adapt(loss_fn(learner(x), y))
        loss = loss_fn(learner(xq), yq)
        tasks.add(adapted(learner), support=(x, y), query=(xq, yq), loss=loss)  # was its backward()
    tasks.backward()  # new: of the losses' mean, so that gradients are not divided any more
    optimizer.step()

Clones share the model's BatchNorm buffers, although the documentation has them cloned (they are only where
they require a gradient). In training mode every call of a clone therefore moves the running statistics of
the model and of all other clones; your loop's own calls still do. `adapted` gives each task its own, and what
the relation term asks leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from trlearner.integrations.snapshot import has_graph, snapshot


def adapted(learner: nn.Module) -> Callable[[Tensor], Any]:
    """A clone as it is now, with buffers of its own.

    Args:
        learner: What ``maml.clone()`` returned, adapted; of `MAML`, `MetaSGD` or `GBML`.

    Raises:
        ValueError: It is no clone.
    """
    if torch.is_grad_enabled() and not has_graph(learner):
        raise ValueError(
            "learner must be a clone that was adapted, but its parameters are nobody's clones: "
            "learner = maml.clone(); learner.adapt(loss); tasks.add(adapted(learner), ...)."
        )
    return snapshot(learner)
