"""The loss of one task, with or without a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trlearner.base.types import LossFn
from trlearner.tasks.ignored import ignored_label
from trlearner.tasks.nested import raw
from trlearner.tasks.targets import check_targets


def task_loss(
    loss_fn: LossFn, predictions: Any, targets: Any, mask: Tensor | None = None
) -> Tensor:
    """``loss_fn`` of one task's real samples.

    Under a mask, padding gets the label that the loss ignores (``ignore_index``). Where there is none, it is
    the mean of the loss's values on single real samples.

    Args:
        loss_fn: Scalar mean over the samples.
        predictions: ``[samples, ...]``, a tensor or `Nested`; the loss gets the user's own structure.
        targets: ``[samples, ...]``, a tensor or `Nested` as well.
        mask: ``[samples]``, true where a sample is real.

    Raises:
        ValueError: The loss is no scalar, or does not fit the targets.

    Example:
        >>> p, y = torch.tensor([1.0, 3.0, 9.0]), torch.zeros(3)
        >>> task_loss(torch.nn.functional.mse_loss, p, y, torch.tensor([True, True, False]))
        tensor(5.)
    """
    plain = isinstance(predictions, Tensor) and isinstance(targets, Tensor)
    if not (plain and targets.is_floating_point() and predictions.ndim == targets.ndim):
        check_targets(loss_fn, predictions, targets)
    if mask is None:
        given = (predictions, targets) if plain else (raw(predictions), raw(targets))
        return _scalar(loss_fn(*given))
    label = ignored_label(loss_fn, predictions, targets)
    if label is not None:
        real = mask.reshape(-1, *[1] * (targets.ndim - 1))
        return _scalar(loss_fn(predictions, torch.where(real, targets, label)))

    def of_one(p: Any, y: Any) -> Tensor:
        return _scalar(loss_fn(raw(p[None]), raw(y[None])))

    each = torch.vmap(of_one)(predictions, targets)
    return torch.where(mask, each, 0.0).sum() / mask.sum()


def task_losses(loss_fn: LossFn, predictions: Any, y: Any, mask: Tensor | None) -> Tensor:
    """Each task's loss on its real samples ``[tasks]``, one after the other."""
    keep = [slice(None) if mask is None else mask[i] for i in range(len(y))]
    return torch.stack([task_loss(loss_fn, predictions[i][k], y[i][k]) for i, k in enumerate(keep)])


def check_decomposes(loss_fn: LossFn, predictions: Any, targets: Any) -> None:
    """Refuse a loss that is not the mean of its values on single samples (masks rely on it).

    Raises:
        ValueError: Naming both values.
    """
    with torch.no_grad():
        whole = _scalar(loss_fn(raw(predictions), raw(targets)))
        real = torch.ones(len(predictions), dtype=torch.bool, device=predictions.device)
        mean = task_loss(loss_fn, predictions, targets, real)
    # Half precision rounds coarsely; autocast may give one of the two, as vmap leaves it out.
    rtol = max(1e-3, *(8 * torch.finfo(value.dtype).eps for value in (whole, mean)))
    if not torch.allclose(whole.double(), mean.double(), rtol=rtol, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"loss_fn must be the mean of its values on single samples where tasks are masked: it "
            f"gave {whole.item():.6g} on {len(predictions)} samples, but their mean is "
            f"{mean.item():.6g}. Use a loss with reduction='mean' and no weights across samples, or "
            "engine='loop', which calls it on the real samples only."
        )


def _scalar(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn must return a scalar, the mean over one task's samples, got {got}. "
            "Use reduction='mean', or append .mean()."
        )
    return loss
