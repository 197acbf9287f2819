"""Numbers that say what relations are like; NumPy, for they are read on the CPU.

An entry that is no number counts as missing where that can be, and makes the result NaN elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def off_diagonal(matrix: Float[np.ndarray, "tasks tasks"]) -> Float[np.ndarray, " pairs"]:
    """What stands beside the diagonal, row by row."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def row_entropy(weights: Float[np.ndarray, "tasks models"]) -> Float[np.ndarray, " tasks"]:
    """``-sum_j p_ij log p_ij`` of every row's weights, in nats; of their sizes where some are negative.

    Example:
        >>> row_entropy(np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])).round(4)
        array([0.6931, 0.    ])
    """
    sizes = np.abs(weights)
    total = sizes.sum(1, keepdims=True)
    share = np.divide(sizes, total, out=np.zeros_like(sizes), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return 0.0 - (share * logs).sum(1)  # not -0.0


def neighbours(weights: Float[np.ndarray, "tasks models"]) -> float:
    """How many models a task listens to, effectively: the mean over tasks of ``exp(row entropy)``."""
    return float(np.exp(row_entropy(weights)).mean())


def negative_share(relations: Float[np.ndarray, "tasks tasks"]) -> float:
    """The share of pairs of tasks whose relation is negative."""
    pairs = off_diagonal(relations)
    return float((pairs < 0).mean()) if len(pairs) else 0.0


def disagreement(heads: Float[np.ndarray, "heads tasks tasks"]) -> float:
    """The standard deviation over heads of a pair's relation, mean over pairs."""
    if heads.shape[1] < 2:
        return 0.0
    return float(off_diagonal(heads.std(0)).mean())


def drift(now: Float[np.ndarray, "tasks tasks"], before: Float[np.ndarray, "tasks tasks"]) -> float:
    """The mean absolute change of a pair's relation."""
    return float(off_diagonal(np.abs(now - before)).mean()) if len(now) > 1 else 0.0


def cosine(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """The cosine of the angle between two vectors; NaN where one is zero."""
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length > 0 else float("nan")


def purity(relations: Float[np.ndarray, "tasks tasks"], families: Sequence[Hashable]) -> float:
    """The share of tasks whose nearest neighbour is of their own family; of those that have one there.

    Example:
        >>> m = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> purity(m, ["sine", "sine", "line"])
        1.0
    """
    same = same_family(families)
    lonely = same.sum(1) == 1
    others = np.where(np.eye(len(relations), dtype=bool), -np.inf, np.nan_to_num(relations))
    right = same[np.arange(len(same)), others.argmax(1)]
    return float(right[~lonely].mean()) if not lonely.all() else float("nan")


def same_family(families: Sequence[Hashable]) -> Bool[np.ndarray, "tasks tasks"]:
    """Which tasks are of one family."""
    numbers = {family: i for i, family in enumerate(dict.fromkeys(families))}
    which = np.array([numbers[family] for family in families])
    return which[:, None] == which


def rank_correlation(
    relations: Float[np.ndarray, "tasks tasks"], truth: Float[np.ndarray, "tasks tasks"]
) -> float:
    """Spearman's: how well the order of the pairs by M agrees with the order by their true similarity.

    Ties get their mean rank. NaN where either is the same for all pairs.

    Example:
        >>> m = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> round(rank_correlation(m, m**3), 4)
        1.0
    """
    x, y = (ranks(off_diagonal(matrix)) for matrix in (relations, truth))
    return cosine(x - x.mean(), y - y.mean()) if len(x) else float("nan")


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 for the smallest; equal values share the mean of their ranks.

    Example:
        >>> ranks(np.array([3.0, 1.0, 3.0]))
        array([2.5, 1. , 2.5])
    """
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    last: Int[np.ndarray, " n"] = count.cumsum()
    return (last - (count - 1) / 2)[which]
