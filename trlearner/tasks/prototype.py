"""Class prototypes: the mean feature of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from trlearner.tasks.samples import Samples


def class_means(
    features: Tensor, labels: Tensor, ways: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean feature of each class of one task, and how many samples it has.

    Args:
        features: ``[samples, features]``.
        labels: ``[samples]``, in ``range(ways)``.
        ways: The number of classes.
        mask: ``[samples]``, true where a sample is real.

    Returns:
        Means ``[classes, features]``, zero for a class without samples, and counts ``[classes]``.

    Example:
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 3)
        (tensor([[2.],
                [5.],
                [0.]]), tensor([2., 1., 0.]))
    """
    # Half precision cannot count, and its sums of features overflow.
    wide = torch.promote_types(torch.float32, features.dtype)
    member = (labels[:, None] == torch.arange(ways, device=labels.device)).to(wide)
    if mask is not None:
        member = member * mask[:, None]
    counts = member.sum(0)
    means = (member.T @ features.to(wide)) / counts.clamp(min=1)[:, None]
    return means.to(features.dtype), counts


def batch_prototypes(features: Tensor, support: Samples) -> tuple[Tensor, Tensor]:
    """`class_means` of every task of a batch.

    Args:
        features: ``[tasks, samples, features]``.
        support: The samples that these are features of, with their number of classes.

    Returns:
        Means ``[tasks, classes, features]`` and counts ``[tasks, classes]``.

    Raises:
        ValueError: There are no class labels, or their number is unknown.
    """
    ways = support.ways
    if ways is None or support.y.is_floating_point() or support.y.ndim != 2:
        raise ValueError(
            "class prototypes need integer labels [tasks, samples] and their number, got "
            f"{support.y.dtype} targets {list(support.y.shape)} with ways={ways}. "
            "Build TaskBatch(..., ways=5)."
        )
    mask = torch.ones_like(support.y, dtype=torch.bool) if support.mask is None else support.mask
    return torch.vmap(lambda h, y, m: class_means(h, y, ways, m))(features, support.y, mask)
