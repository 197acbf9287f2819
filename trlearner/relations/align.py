"""Matching the classes of two tasks, each of which numbers its own."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from trlearner.base.checks import check_number, check_tensor, check_whole
from trlearner.base.functional import directions

TEMPERATURE = 0.1
ITERATIONS = 20


def similarity(
    prototypes: Float[Tensor, "tasks classes features"], models: slice = slice(None)
) -> Float[Tensor, "models tasks classes classes"]:
    """Cosines of class prototypes: class c of task i with class c' of task j at ``[j, i, c, c']``.

    Args:
        prototypes: Mean features of each task's classes.
        models: Which of the tasks stand for j; by default all.

    Returns:
        Cosines, in single precision where prototypes have half; 0 for a class of zero features.
    """
    check_tensor("prototypes", prototypes, "tasks, classes, features")
    # In half precision the square of epsilon would be zero, and autocast would multiply in it.
    wide = prototypes.to(torch.promote_types(torch.float32, prototypes.dtype))
    # A class without samples has no gradient: 1 / epsilon would be infinite in half precision.
    units = torch.where((wide != 0).any(-1, keepdim=True), directions(wide), 0.0)
    with torch.autocast(units.device.type, enabled=False):
        return einsum(
            units,
            units[models],
            "tasks classes features, models theirs features -> models tasks classes theirs",
        )


def sinkhorn(
    prototypes: Float[Tensor, "tasks classes features"],
    temperature: float = TEMPERATURE,
    iterations: int = ITERATIONS,
    models: slice = slice(None),
) -> Float[Tensor, "models tasks classes classes"]:
    """Soft one-to-one matching of class prototypes, differentiable.

    The kernel exp(cosine / temperature) is normalized in turn over rows and columns (Sinkhorn & Knopp
    1967), ending with columns: each class of the model is shared out among the task's classes.

    Args:
        prototypes: Mean features of each task's classes.
        temperature: Lower is harder.
        iterations: Of both normalizations.
        models: Whose classes are matched; by default those of all tasks.

    Raises:
        TypeError: `prototypes` is no tensor.
        ValueError: It has other axes, the temperature is not above 0, or there is no iteration.

    Example:
        >>> two = torch.eye(2)
        >>> sinkhorn(torch.stack([two, two.flip(0)]))[1, 0].round()
        tensor([[0., 1.],
                [1., 0.]])
    """
    check_number("temperature", temperature, above=0)
    check_whole("iterations", iterations)
    logs = similarity(prototypes, models) / temperature
    for _ in range(iterations):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()


def hungarian(
    prototypes: Float[Tensor, "tasks classes features"], models: slice = slice(None)
) -> Float[Tensor, "models tasks classes classes"]:
    """The one-to-one matching of largest total cosine; a permutation, without a gradient.

    Args:
        prototypes: Mean features of each task's classes.
        models: Whose classes are matched; by default those of all tasks.

    Raises:
        ImportError: SciPy is not installed.

    Example:
        >>> two = torch.eye(2)
        >>> hungarian(torch.stack([two, two.flip(0)]))[1, 0]
        tensor([[0., 1.],
                [1., 0.]])
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "align='hungarian' needs SciPy: pip install scipy. Or use align='sinkhorn'."
        ) from error
    cosines = similarity(prototypes, models).detach()
    matching = torch.zeros_like(cosines)
    for j, i in torch.cartesian_prod(*map(torch.arange, cosines.shape[:2])).tolist():
        rows, columns = linear_sum_assignment(cosines[j, i].cpu().numpy(), maximize=True)
        matching[j, i, rows, columns] = 1
    return matching
