"""The coding rate: how much room a cloud of features takes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trlearner.base.functional import directions

EPS = 1e-6
SIGMA2 = 0.5
"""How finely features are told apart: the variance of the noise up to which they are coded."""


def unit_rows(
    features: Float[Tensor, "tasks samples features"],
    mask: Bool[Tensor, "tasks samples"] | None = None,
) -> Float[Tensor, "tasks samples features"]:
    """Rows centred on their task's mean and brought to length 1; zero where no sample is real.

    Args:
        features: Of every sample.
        mask: True where a sample is real.

    Example:
        >>> unit_rows(torch.tensor([[[3.0, 0.0], [5.0, 0.0]]]))
        tensor([[[-1.,  0.],
                 [ 1.,  0.]]])
    """
    rows = masked_rows(features, mask)
    count = rows.shape[1] if mask is None else mask.sum(1)[:, None, None]
    rows = masked_rows(rows - rows.sum(1, keepdim=True) / count, mask)
    return directions(rows)


def masked_rows(
    features: Float[Tensor, "tasks samples features"],
    mask: Bool[Tensor, "tasks samples"] | None,
) -> Float[Tensor, "tasks samples features"]:
    """Features in at least float32, zero where no sample is real."""
    rows = features.to(torch.promote_types(torch.float32, features.dtype))
    return rows if mask is None else torch.where(mask[..., None], rows, 0.0)


def coding_rates(
    rows: Float[Tensor, "tasks samples features"],
    groups: Bool[Tensor, "tasks groups samples"],
    sigma2: float = SIGMA2,
    literal: bool = False,
) -> Float[Tensor, "tasks groups"]:
    """R = 1/2 logdet(I + d / (n sigma^2) Z^T Z) of the rows of every group; 0 for an empty one.

    (Yu et al. 2020, arXiv 2006.08558.) With unit rows it does not grow with n.

    Args:
        rows: Z, ``[n, d]`` for each task.
        groups: True where a sample belongs to a group.
        sigma2: The smaller, the finer features are told apart.
        literal: ``1/2 n logdet(I + Z Z^T / (n sigma^2))`` instead, as arXiv 2307.08924 prints it; it
            grows with n and with the features' scale.

    Raises:
        ValueError: sigma2 is not above 0.

    Example:
        >>> both = torch.tensor([[[True, True]]])
        >>> coding_rates(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), both)
        tensor([[0.8047]])
        >>> coding_rates(torch.eye(2)[None], both)
        tensor([[1.0986]])
    """
    if not sigma2 > 0:
        raise ValueError(f"sigma2 must be a number above 0, got {sigma2!r}. Pass e.g. {SIGMA2}.")
    width = rows.shape[-1]
    count = groups.sum(-1).to(rows)
    scale = (1.0 if literal else float(width)) / (count.clamp(min=1.0) * sigma2)
    with torch.autocast(rows.device.type, enabled=False):
        gram = scale[..., None, None] * _gram(rows, groups)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        rate = torch.linalg.cholesky_ex(eye + gram).L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return count * rate if literal else rate


def leverage(
    rows: Float[Tensor, "tasks samples features"], sigma2: float = SIGMA2
) -> Float[Tensor, "tasks samples"]:
    """How much of the coding rate hangs on each row: ``a z (I + a Z^T Z)^-1 z``, a = d / (n sigma^2).

    It is the derivative of ``logdet(I + a Z^T Z)`` by the row's weight, between 0 and 1.

    Args:
        rows: Z; rows of zeros count neither here nor in n.
        sigma2: As in `coding_rates`.

    Example:
        >>> leverage(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]))
        tensor([[0.3636, 0.3636, 0.5714]])
    """
    count = (rows.square().sum(-1) > 0).sum(-1).clamp(min=1).to(rows)
    scale = (rows.shape[-1] / (count * sigma2))[:, None, None]
    with torch.autocast(rows.device.type, enabled=False):
        if rows.shape[1] <= rows.shape[2]:
            gram = scale * (rows @ rows.mT)
            eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
            root = torch.linalg.cholesky_ex(eye + gram).L
            return 1 - torch.cholesky_inverse(root).diagonal(dim1=-2, dim2=-1)
        gram = scale * (rows.mT @ rows)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        root = torch.linalg.cholesky_ex(eye + gram).L
        solved = torch.linalg.solve_triangular(root, rows.mT, upper=False)
        return scale[..., 0] * solved.square().sum(1)


def _gram(
    rows: Float[Tensor, "tasks samples features"], groups: Bool[Tensor, "tasks groups samples"]
) -> Float[Tensor, "tasks groups side side"]:
    """Z Z^T or Z^T Z of every group, whichever is smaller; their determinants agree."""
    if rows.shape[1] <= rows.shape[2]:
        both = groups[..., :, None] & groups[..., None, :]
        return torch.where(both, (rows @ rows.mT)[:, None], 0.0)
    inside = torch.where(groups[..., None], rows[:, None], 0.0)
    return inside.mT @ inside
