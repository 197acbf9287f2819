"""Means over seeds with their 95 % confidence intervals (Student's t)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and how far its confidence interval reaches to either side.

    Attributes:
        mean: Over the values.
        half_width: ``t * s / sqrt(n)``; ``None`` for a single value, which has no spread.
    """

    mean: float
    half_width: float | None

    def excludes_zero(self) -> bool:
        """Whether the mean can be told from zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def __str__(self) -> str:
        spread = "?" if self.half_width is None else f"{self.half_width:.3f}"
        return f"{self.mean:.3f} ± {spread}"


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of one value a seed, with its interval.

    Example:
        >>> print(interval([1.0, 2.0, 3.0]))
        2.000 ± 2.484
        >>> print(interval([1.0]))
        1.000 ± ?
    """
    from scipy.stats import t  # here, because its import takes longer than everything else's

    if len(values) < 2:
        return Interval(statistics.fmean(values), None)
    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.fmean(values), quantile * error)


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """``second - first``, paired by seed: what both arms owe to the seed cancels.

    Example:
        >>> print(paired([1.0, 2.0, 3.0], [1.5, 2.5, 3.5]))
        0.500 ± 0.000
    """
    return interval([b - a for a, b in zip(first, second, strict=True)], level)
