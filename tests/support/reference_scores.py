"""Slow, loop-only truth for the sampler's scores; it shares no code with the library."""

import math

import torch
from torch import Tensor

TINY = 1e-6


def kept(features: Tensor, mask: Tensor | None) -> list[list[float]]:
    """The real rows of one task."""
    rows = features.tolist()
    return rows if mask is None else [r for r, m in zip(rows, mask.tolist(), strict=True) if m]


def prepared(rows: list[list[float]]) -> list[list[float]]:
    """Centred on their mean, then each divided by its length."""
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    found = []
    for row in rows:
        moved = [a - m for a, m in zip(row, mean, strict=True)]
        length = math.sqrt(sum(a * a for a in moved) + TINY**2)
        found.append([a / length for a in moved])
    return found


def log_det(matrix: list[list[float]]) -> float:
    """By Gaussian elimination."""
    a, total = [row[:] for row in matrix], 0.0
    for i in range(len(a)):
        total += math.log(a[i][i])
        for j in range(i + 1, len(a)):
            factor = a[j][i] / a[i][i]
            for k in range(i, len(a)):
                a[j][k] -= factor * a[i][k]
    return total


def rate(rows: list[list[float]], sigma2: float, literal: bool) -> float:
    """1/2 logdet(I + d/(n s) sum_i z_i z_i^T); literal: n/2 logdet(I + 1/(n s) sum_i z_i z_i^T)."""
    if not rows:
        return 0.0
    n, d = len(rows), len(rows[0])
    factor = (1 if literal else d) / (n * sigma2)
    matrix = [
        [(i == j) + factor * sum(z[i] * z[j] for z in rows) for j in range(d)] for i in range(d)
    ]
    return 0.5 * (n if literal else 1) * log_det(matrix)


def diversity(rows: list[list[float]], sigma2: float, literal: bool) -> float:
    return rate(rows if literal else prepared(rows), sigma2, literal)


def bins_of(values: list[float], bins: int) -> list[int]:
    """Equal values share a mid-rank; the mid-rank says which of the bins of equal size it falls into."""
    order = sorted(values)
    found = []
    for value in values:
        first = order.index(value)
        last = len(order) - 1 - order[::-1].index(value)
        middle = (first + last + 1) / 2  # where the block of equal values has its middle
        found.append(math.floor(bins * middle / len(order) + 1e-12))
    return found


def members(targets: Tensor, mask: Tensor | None, ways: int | None, bins: int) -> list[list[int]]:
    """For each column of one task's targets the group of each real sample."""
    columns = targets[:, None] if targets.ndim == 1 else targets.flatten(1)
    rows = kept(columns, mask)
    found = []
    for column in zip(*rows, strict=True):
        found.append(
            bins_of(list(column), bins) if targets.is_floating_point() else [int(c) for c in column]
        )
    return found


def entropy(
    rows: list[list[float]], columns: list[list[int]], sigma2: float, literal: bool
) -> float:
    z, total = (rows if literal else prepared(rows)), 0.0
    for labels in columns:
        for c in set(labels):
            own = [r for r, k in zip(z, labels, strict=True) if k == c]
            total += len(own) / len(z) * rate(own, sigma2, literal)
    return total / len(columns)


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(c) / len(rows) for c in zip(*rows, strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def direction(total: list[float]) -> list[float]:
    length = math.sqrt(dot(total, total) + TINY**2)
    return [a / length for a in total]


def total_of(rows: list[list[float]]) -> list[float]:
    return [sum(c) for c in zip(*rows, strict=True)]


def compactness(rows: list[list[float]], columns: list[list[int]]) -> float:
    z, total = prepared(rows), 0.0
    for labels in columns:
        for r, k in zip(z, labels, strict=True):
            own = [q for q, c in zip(z, labels, strict=True) if c == k]
            total += dot(r, direction(total_of(own)))
    return total / len(z) / len(columns)


def separability(rows: list[list[float]], columns: list[list[int]]) -> float:
    z, found = prepared(rows), []
    for labels in columns:
        names = sorted(set(labels))
        centre = {
            c: direction(total_of([r for r, k in zip(z, labels, strict=True) if k == c]))
            for c in names
        }
        found += [1 - dot(centre[a], centre[b]) for a in names for b in names if a != b]
    return sum(found) / len(found) if found else 0.0


def enrichment(rows: list[list[float]]) -> float:
    z = prepared(rows)
    trace = sum(dot(r, r) for r in z)
    square = sum(dot(a, b) ** 2 for a in z for b in z)
    return trace**2 / (square + TINY**2) / min(max(len(z) - 1, 1), len(z[0]))


def leverage(rows: list[list[float]], sigma2: float) -> list[float]:
    """By how much logdet(I + a sum_i w_i z_i z_i^T) changes with w_i at w = 1, by central differences."""
    z = prepared(rows)
    n, d = len(z), len(z[0])
    a, h, found = d / (n * sigma2), 1e-5, []
    for s in range(n):
        sides = []
        for step in (h, -h):
            w = [1 + step * (k == s) for k in range(n)]
            sides.append(
                log_det(
                    [
                        [
                            (i == j) + a * sum(w[k] * z[k][i] * z[k][j] for k in range(n))
                            for j in range(d)
                        ]
                        for i in range(d)
                    ]
                )
            )
        found.append((sides[0] - sides[1]) / (2 * h))
    return found


def difficulty(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(x) ** 2 for g in gradients for x in torch.flatten(g)))
