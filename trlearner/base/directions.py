"""Vectors at length 1, of which a cosine is the product."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""Keeps the cosine of a zero vector, and its gradient, finite."""
LARGE = 2.0**30
"""Vectors with larger entries are scaled down before they are squared."""


def directions(vectors: Tensor) -> Tensor:
    """Vectors ``[..., features]`` of at least single precision at length 1: ``v * rsqrt(v.v + eps^2)``.

    Vectors that are not much longer than eps stay shorter, and a vector of zeros stays zero.
    """
    # Squares of larger entries would overflow, and a direction become zero.
    most = vectors.detach().abs().amax(-1, keepdim=True)
    vectors = vectors / (most / LARGE).clamp(min=1.0)
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + EPSILON**2)
