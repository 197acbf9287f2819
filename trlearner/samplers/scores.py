"""What a task has to offer, as one number a task: pure functions of its features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from trlearner.base.directions import directions
from trlearner.samplers.groups import BINS, groups
from trlearner.tasks.coding import EPS, SIGMA2, coding_rates, masked_rows, unit_rows


def diversity(
    features: Float[Tensor, "tasks samples features"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
    *,
    sigma2: float = SIGMA2,
    literal: bool = False,
) -> Float[Tensor, " tasks"]:
    """The coding rate of a task's features: ``1/2 logdet(I + d / (n sigma^2) Z^T Z)``.

    Z are the features centred on their mean, each of length 1, so that neither the size of a task nor the
    scale of features counts (arXiv 2307.08924, whose formula is `literal`).

    Args:
        features: Of every sample.
        mask: True where a sample is real.
        sigma2: As in `coding_rates`.
        literal: The published ``1/2 n logdet(I + Z Z^T / (n sigma^2))`` of the features as they are.

    Example:
        >>> diversity(torch.tensor([[[0.0], [0.0]], [[0.0], [1.0]]]))
        tensor([0.0000, 0.5493])
    """
    rows = masked_rows(features, mask) if literal else unit_rows(features, mask)
    real = torch.ones_like(features[..., 0], dtype=torch.bool) if mask is None else mask
    return coding_rates(rows, real[:, None], sigma2, literal)[:, 0]


def entropy(
    features: Float[Tensor, "tasks samples features"],
    targets: Shaped[Tensor, "tasks samples *outputs"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
    *,
    ways: int | None = None,
    bins: int = BINS,
    sigma2: float = SIGMA2,
    literal: bool = False,
) -> Float[Tensor, " tasks"]:
    """The coding rate that is left within classes: the mean of their rates, each by its share of samples.

    Regression has bins of its targets' quantiles for classes; several target columns are averaged. Rows
    are prepared once, as in `diversity`, not anew within each class, or a tight class would look like a
    broad one.

    Args:
        features: Of every sample.
        targets: Labels or numbers.
        mask: True where a sample is real.
        ways: The number of classes, for labels.
        bins: The number of bins, for numbers.
        sigma2: As in `coding_rates`.
        literal: As in `diversity`.

    Example:
        >>> x = torch.tensor([[[0.0, 1.0], [0.0, 1.1], [1.0, 0.0], [1.1, 0.0]]])
        >>> together, apart = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]])
        >>> bool(entropy(x, together, ways=2) < entropy(x, apart, ways=2))
        True
    """
    rows = masked_rows(features, mask) if literal else unit_rows(features, mask)
    member = groups(targets, mask, ways, bins).flatten(1, 2)
    rates = coding_rates(rows, member, sigma2, literal)
    size = member.sum(-1).to(rates)
    return (size * rates).sum(1) / size.sum(1).clamp(min=1)


def difficulty(gradients: Mapping[str, Tensor]) -> Float[Tensor, " tasks"]:
    """The norm of each task's support gradient before adaptation, over all that adapts.

    Args:
        gradients: ``[tasks, ...]`` by name.

    Example:
        >>> difficulty({"weight": torch.tensor([[3.0], [0.0]]), "bias": torch.tensor([4.0, 1.0])})
        tensor([5., 1.])
    """
    if not gradients:
        raise ValueError("gradients must hold at least one tensor [tasks, ...], got none.")
    # In half precision the squares of small gradients are zero, and those of large ones infinite.
    wide = [
        g.reshape(len(g), -1).to(torch.promote_types(torch.float32, g.dtype))
        for g in gradients.values()
    ]
    parts = [g.square().sum(1) for g in wide]
    return torch.stack(parts).sum(0).sqrt()


def compactness(
    features: Float[Tensor, "tasks samples features"],
    targets: Shaped[Tensor, "tasks samples *outputs"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
    *,
    ways: int | None = None,
    bins: int = BINS,
) -> Float[Tensor, " tasks"]:
    """How close samples lie to their class: the mean cosine between a row and its class's mean.

    Args:
        features: Of every sample; centred and brought to length 1, as in `diversity`.
        targets: As in `entropy`.
        mask: True where a sample is real.
        ways: As in `entropy`.
        bins: As in `entropy`.

    Example:
        >>> compactness(
        ...     torch.tensor([[[0.0], [0.1], [1.0], [1.1]]]), torch.tensor([[0, 0, 1, 1]]), ways=2
        ... )
        tensor([1.])
    """
    rows = unit_rows(features, mask)
    member = groups(targets, mask, ways, bins).flatten(1, 2).to(rows)
    cosines = directions(member @ rows) @ rows.mT
    return (member * cosines).sum((1, 2)) / member.sum((1, 2)).clamp(min=1)


def separability(
    features: Float[Tensor, "tasks samples features"],
    targets: Shaped[Tensor, "tasks samples *outputs"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
    *,
    ways: int | None = None,
    bins: int = BINS,
) -> Float[Tensor, " tasks"]:
    """How far classes lie apart: the mean of 1 - cosine over pairs of their means; 0 without a pair.

    Args:
        features: Of every sample; centred and brought to length 1, as in `diversity`.
        targets: As in `entropy`.
        mask: True where a sample is real.
        ways: As in `entropy`.
        bins: As in `entropy`.

    Example:
        >>> separability(
        ...     torch.tensor([[[0.0], [0.1], [1.0], [1.1]]]), torch.tensor([[0, 0, 1, 1]]), ways=2
        ... )
        tensor([2.])
    """
    rows = unit_rows(features, mask)
    member = groups(targets, mask, ways, bins)
    means = directions(member.to(rows) @ rows[:, None])  # [tasks, columns, groups, features]
    there = member.any(-1)
    pairs = there[..., :, None] & there[..., None, :]
    pairs = pairs & ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    apart = torch.where(pairs, 1 - means @ means.mT, 0.0)
    return apart.sum((1, 2, 3)) / pairs.sum((1, 2, 3)).clamp(min=1)


def enrichment(
    features: Float[Tensor, "tasks samples features"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
) -> Float[Tensor, " tasks"]:
    """The share of the feature space's directions that a task uses: ``tr(G)^2 / tr(G^2) / min(n - 1, d)``.

    G is the Gram matrix of centred rows of length 1; ``tr(G)^2 / tr(G^2)`` counts its eigenvalues, each by
    its weight, and is n where all are alike and 1 where there is one.

    Args:
        features: Of every sample.
        mask: True where a sample is real.

    Example:
        >>> enrichment(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]]))
        tensor([1.])
    """
    rows = unit_rows(features, mask)
    count = rows.new_full((len(rows),), rows.shape[1]) if mask is None else mask.sum(1).to(rows)
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    used = rows.square().sum((1, 2)).square() / (gram.square().sum((1, 2)) + EPS**2)
    return used / (count - 1).clamp(min=1, max=rows.shape[2])
