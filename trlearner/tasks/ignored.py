"""The label that a loss passes over, as ``cross_entropy(ignore_index=-100)`` does."""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.types import LossFn
from trlearner.tasks.targets import Memo, Misfit, numbers, once, plain, remember, trying

USUAL = (-100, -1, 255)
CLASSES = 100
"""So many of a loss's classes are tried, where the loss does not say which label it ignores."""


def ignored_label(loss_fn: LossFn, predictions: Any, targets: Any) -> int | None:
    """A label whose samples do not count in the loss, neither in its sum nor in its mean.

    It is found by trying, once for each loss and shapes of a sample: padding with this label must leave the
    loss as it is.

    Args:
        loss_fn: For one task.
        predictions: ``[samples, classes, ...]``.
        targets: ``[samples, ...]``.

    Returns:
        ``None`` where there is none.

    Example:
        >>> from torch.nn.functional import cross_entropy, mse_loss
        >>> ignored_label(cross_entropy, torch.zeros(2, 3), torch.tensor([0, 1]))
        -100
    """
    both = isinstance(predictions, Tensor) and isinstance(targets, Tensor)
    if not both or targets.dtype != torch.int64 or predictions.ndim < 2:
        return None
    given = (predictions.shape[1:], targets.shape[1:], predictions.dtype)
    if once(_found, loss_fn, given):
        declared = _declared(loss_fn)
        classes = range(min(predictions.shape[1], CLASSES))
        labels = (*USUAL, *classes) if declared is None else (declared,)
        with trying():
            there = _on_cpu(plain(loss_fn))
            label = next((v for v in labels if _passes_over(there, v, predictions, targets)), None)
        remember(_found, loss_fn, given, label)
        return label
    found: int | None = _found[plain(loss_fn)][given]
    return found


def check_labelled(loss_fn: LossFn, targets: Any, mask: Tensor | None) -> None:
    """Refuse a task all of whose labels the loss ignores; looked at on the CPU only, where nothing waits.

    Args:
        loss_fn: For one task.
        targets: ``[tasks, samples, ...]``.
        mask: ``[tasks, samples]``, true where a sample is real.

    Raises:
        Misfit: Naming the tasks.
    """
    label = _declared(loss_fn) if isinstance(targets, Tensor) else None
    if label is None or targets.dtype != torch.int64 or targets.device.type != "cpu":
        return
    counts = (targets != label).flatten(2).any(2) if targets.ndim > 2 else targets != label
    counts = (counts if mask is None else counts & mask).any(1)
    if not counts.all():
        raise Misfit(
            f"every task needs a sample that counts, but loss_fn ignores the label {label}, and tasks "
            f"{(~counts).nonzero().flatten().tolist()} have no other: their loss is 0/0.",
            "Leave these tasks out of the batch.",
        )


def _declared(loss_fn: LossFn) -> int | None:
    """What the loss says by an attribute or a parameter `ignore_index`."""
    if once(_says, loss_fn, None):
        label = getattr(plain(loss_fn), "ignore_index", None)
        if label is None and not isinstance(plain(loss_fn), nn.Module):
            label = _default(plain(loss_fn))
        label = label if isinstance(label, int) else None
        remember(_says, loss_fn, None, label)
        return label
    found: int | None = _says[plain(loss_fn)][None]
    return found


def _default(loss_fn: LossFn) -> object:
    try:
        parameter = inspect.signature(loss_fn).parameters.get("ignore_index")
    except (TypeError, ValueError):  # a builtin has none
        return None
    return None if parameter is None else parameter.default


def _on_cpu(loss_fn: LossFn) -> LossFn:
    """The loss where a label out of its range is an error; on a GPU it would be the end of the process."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    try:
        return copy.deepcopy(loss_fn).cpu()
    except Exception:  # it holds what cannot be copied
        return loss_fn


def _passes_over(loss_fn: LossFn, label: int, predictions: Tensor, targets: Tensor) -> bool:
    cpu = torch.device("cpu")
    p = numbers(torch.Size((3, *predictions.shape[1:])), predictions, cpu)
    y = torch.full((3, *targets.shape[1:]), 1 if label == 0 else 0)
    padded = y.clone()
    padded[2] = label
    try:
        without, with_it = loss_fn(p[:2], y[:2]), loss_fn(p, padded)
        tolerance = max(1e-5, 8 * torch.finfo(without.dtype).eps)
        return torch.allclose(without, with_it, rtol=tolerance, atol=0.0)
    except Exception:  # the loss does not take this label
        return False


_found: Memo = weakref.WeakKeyDictionary()
_says: Memo = weakref.WeakKeyDictionary()
