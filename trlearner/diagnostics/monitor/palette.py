"""Colours for numbers, distinct for eyes that cannot tell red from green."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

MISSING = (190, 190, 190)
"""Of what is no number."""

# Dark blue over green to yellow: from little to much.
AMOUNT = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float
)
# Blue over white to red: below and above zero.
SIGNED = np.array(
    [(33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43)], dtype=float
)


def colour(
    values: Float[np.ndarray, "*shape"], low: float, high: float, signed: bool
) -> UInt8[np.ndarray, "*shape 3"]:
    """Every number as red, green and blue; `low` and what is below gets the first colour.

    Args:
        values: NaN is grey.
        low: Where the palette begins.
        high: Where it ends.
        signed: Whether its middle stands for zero.

    Example:
        >>> colour(np.array([0.0, 1.0, np.nan]), 0.0, 1.0, signed=False).tolist()
        [[68, 1, 84], [253, 231, 37], [190, 190, 190]]
    """
    anchors = SIGNED if signed else AMOUNT
    place = np.clip((values - low) / (high - low), 0.0, 1.0) * (len(anchors) - 1)
    known = np.isfinite(place)
    place = np.where(known, place, 0.0)
    below = np.minimum(place.astype(int), len(anchors) - 2)
    rest = (place - below)[..., None]
    mixed = anchors[below] * (1 - rest) + anchors[below + 1] * rest
    return np.where(known[..., None], mixed.round(), MISSING).astype(np.uint8)


def limits(values: Float[np.ndarray, "*shape"]) -> tuple[float, float, bool]:
    """From where to where a palette goes for these values, and whether zero is its middle.

    Example:
        >>> limits(np.array([0.2, 0.8])), limits(np.array([-0.5, 0.2, np.nan]))
        ((0.2, 0.8, False), (-0.5, 0.5, True))
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0, False
    low, high = float(known.min()), float(known.max())
    if low < 0:
        far = max(-low, high, 1e-3)
        return -far, far, True
    # Noise in the last digits is no structure.
    return (low, high, False) if high - low >= 1e-3 else (high - 1e-3, high, False)
