"""The loss of a sampler that was told none."""

from __future__ import annotations

from torch.nn.functional import cross_entropy, mse_loss

from trlearner.base.types import LossFn
from trlearner.tasks.batch import TaskBatch


def loss_for(loss_fn: LossFn | None, batch: TaskBatch) -> LossFn:
    """The given one, or cross-entropy for labels and squares for numbers."""
    if loss_fn is not None:
        return loss_fn
    return mse_loss if batch.query.y.is_floating_point() else cross_entropy
