"""Which remembered models contribute to a memory's answers, as a matrix for a picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

MODELS = 32
"""So many models are shown."""
TASKS = 64
"""So many new tasks are shown, the first ones."""


def contributors(
    models: Shaped[np.ndarray, "tasks kept"], weights: Float[np.ndarray, "tasks kept"]
) -> tuple[Float[np.ndarray, "tasks models"], list[int]]:
    """Coefficients of the models that contribute most, and which models these are, the most first.

    Args:
        models: Which models each task's answer is made of.
        weights: Their coefficients.

    Returns:
        Zero is the coefficient of a model that does not contribute to a task.

    Example:
        >>> contributors(np.array([[7, 2], [2, 5]]), np.array([[0.9, 0.1], [1.5, -0.5]]))
        (array([[ 0.1,  0.9,  0. ],
               [ 1.5,  0. , -0.5]]), [2, 7, 5])
    """
    models, weights = models[:TASKS].astype(int), weights[:TASKS]
    there = np.unique(models)
    matrix = np.zeros((len(models), len(there)))
    matrix[np.arange(len(models))[:, None], np.searchsorted(there, models)] = weights
    order = np.argsort(-np.abs(matrix).sum(0), kind="stable")[:MODELS]
    return matrix[:, order], there[order].tolist()
