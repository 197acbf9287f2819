"""Loops in a `LightningModule` (lightning.ai).

Before::

    class Maml(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            losses = [loss_fn(adapt(self.net, x, y)(xq), yq) for x, y, xq, yq in zip(*batch)]
            return torch.stack(losses).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

After::

    class Regularized(lightning.LightningModule):
        def __init__(self, net, reg):
            super().__init__()
            self.net, self.reg = net, reg  # new: reg

        def training_step(self, batch, index):
            tasks, losses = self.reg.collect(), []  # new
            for x, y, xq, yq in zip(*batch):
                model = adapt(self.net, x, y)
                tasks.add(model, support=(x, y), query=(xq, yq))  # new
                losses.append(loss_fn(model(xq), yq))
            return torch.stack(losses).mean() + tasks.penalty()  # new: + tasks.penalty()

        def validation_step(self, batch, index):
            with adaptation(batch) as batch:  # new: gradients are off here
                losses = [loss_fn(adapt(self.net, x, y)(xq), yq) for x, y, xq, yq in zip(*batch)]
            self.log("val_loss", torch.stack(losses).mean().detach())

        def on_fit_start(self):
            check_optimizers(self)  # new

        def configure_optimizers(self):  # as it was, and with the regularizer's parameters
            return torch.optim.Adam(self.parameters())

To watch it beside Lightning's own curves, say in ``on_fit_start``
``self.reg.monitor = RelationMonitor(self.logger.experiment)``; only training steps are watched.
As an attribute the regularizer is moved, saved and optimized with the rest; `check_optimizers` tells if your
optimizers lack it. Clipping, accumulation and precision are the trainer's, as before. Lightning counts
parameters before the first batch, so tell a `LabelledEncoder` its sizes: ``features=`` and ``targets=``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from trlearner import TaskBatch, TRLearner


@contextmanager
def adaptation(batch: Any) -> Iterator[Any]:
    """Gradients inside, also in `validation_step` and `test_step`; the batch as autograd can use it.

    ``trainer.fit`` validates under no_grad, ``trainer.validate`` and ``test`` in inference mode, where
    ``torch.enable_grad()`` alone changes nothing, and what is loaded can be part of no graph: it is copied.

    Args:
        batch: Tensors, `TaskBatch`, or tuples, lists and dicts of them.
    """

    def usable(part: Any) -> Any:
        if isinstance(part, TaskBatch):
            return part.replace(part.support.clone(), part.query.clone())
        return part.clone() if isinstance(part, Tensor) and part.is_inference() else part

    with torch.inference_mode(False), torch.enable_grad():
        yield tree_map(usable, batch)


def check_optimizers(module: nn.Module) -> None:
    """Refuse to train a regularizer that no optimizer of the module has; for ``on_fit_start``.

    Raises:
        ValueError: Naming the parameters that would stay as they are.
    """
    optimizers = module.trainer.optimizers  # type: ignore[union-attr]
    known = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    left = [
        f"{path}.{name}"
        for path, part in module.named_modules()
        if isinstance(part, TRLearner)
        for name, p in part.named_parameters()
        if p.requires_grad and id(p) not in known
    ]
    if left:
        raise ValueError(
            f"{', '.join(left)}: no optimizer has these. Give it self.parameters(), or "
            "[*self.net.parameters(), *self.reg.parameters()], in configure_optimizers."
        )
