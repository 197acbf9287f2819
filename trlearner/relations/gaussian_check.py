"""What the functions of `trlearner.relations.gaussian` take."""

from __future__ import annotations

import torch
from torch import Tensor

from trlearner.base.checks import check_number, check_tensor, check_whole, shown
from trlearner.relations.posterior import Posterior
from trlearner.tasks.samples import check_mask


def scale(name: str, value: float | Tensor, labels: Tensor) -> Tensor:
    """A number, or one for each task and output, as ``[tasks, outputs]``.

    Raises:
        ValueError: It makes no sense, or does not broadcast.
    """
    if not isinstance(value, Tensor):
        check_number(name, value, **({"above": 0.0} if name == "noise" else {"least": 0.0}))
    shape = (len(labels), *labels.shape[2:])
    number = torch.as_tensor(value, dtype=torch.float64, device=labels.device)
    try:
        return number.broadcast_to(shape).unsqueeze(-1).flatten(1)
    except RuntimeError:
        raise ValueError(
            f"{name} must be a number or broadcast to [tasks, *outputs] = {shape}, got "
            f"{tuple(number.shape)}. For one number a task, append an axis for each of the outputs' axes."
        ) from None


def check_support(predictions: Tensor, labels: Tensor, mask: Tensor | None) -> None:
    """Refuse predictions, labels and a mask that do not fit together.

    Raises:
        TypeError: One of them is no tensor of floating-point numbers.
        ValueError: Naming the argument, what it is and what it should be.
    """
    check_tensor("predictions", predictions, "tasks, models, shots, ...")
    check_tensor("labels", labels, "tasks, shots, ...")
    for name, value in (("predictions", predictions), ("labels", labels)):
        if not value.is_floating_point():
            raise TypeError(
                f"{name} must be floating-point numbers, got {shown(value)}. Call .float() on numbers; "
                "the rule is for regression."
            )
    tasks, _, *rest = predictions.shape
    if labels.shape != (tasks, *rest):
        raise ValueError(
            f"labels must be [tasks, shots, *outputs] = {(tasks, *rest)} to match predictions [tasks, "
            f"models, shots, *outputs] = {tuple(predictions.shape)}, got {tuple(labels.shape)}."
        )
    if 0 in labels.shape:
        raise ValueError(
            f"labels must have at least one task, shot and output, got {tuple(labels.shape)}. Nothing can "
            "be learned of tasks without shots."
        )
    if mask is not None:
        check_mask(mask, labels, "shots")


def check_more(
    predictions: Tensor,
    labels: Tensor,
    neighbours: int,
    prior: Tensor | None,
    kernel: Tensor | None,
) -> None:
    """Refuse a number of models, a prior mean or a kernel that do not go with the support.

    Raises:
        TypeError: One of the last two is no tensor.
        ValueError: Naming the argument, what it is and what it should be.
    """
    check_whole("neighbours", neighbours, least=1 if prior is None else 0)
    if prior is None and predictions.shape[1] == 0:
        raise ValueError(
            f"predictions must be of at least one model, got {tuple(predictions.shape)}. Without any, pass "
            "prior= with what the task's own model says."
        )
    if prior is not None:
        check_tensor("prior", prior, "tasks, shots, ...")
        _check_shape("prior", prior, "[tasks, shots, *outputs]", tuple(labels.shape))
    if kernel is not None:
        check_tensor("kernel", kernel, "tasks, shots, shots")
        tasks, shots = labels.shape[:2]
        _check_shape("kernel", kernel, "[tasks, shots, shots]", (tasks, shots, shots))


def check_queries(
    posterior: Posterior, predictions: Tensor, more: dict[str, Tensor | None]
) -> None:
    """Refuse what does not go with a posterior: predictions of queries, a prior mean, a kernel.

    Raises:
        TypeError: The posterior is none, or another argument is no tensor.
        ValueError: Naming the argument, what it is and what it should be.
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(
            f"posterior must be a Posterior, got {shown(posterior)}. gaussian_posterior(...) returns one."
        )
    check_tensor("predictions", predictions, "tasks, kept, queries, ...")
    tasks, kept = posterior.models.shape
    queries, outputs = predictions.shape[2], posterior.outputs
    expected = (tasks, kept, queries, *outputs)
    _check_shape("predictions", predictions, "[tasks, kept, queries, *outputs]", expected)
    shapes = {
        "prior": ("[tasks, queries, *outputs]", (tasks, queries, *outputs)),
        "kernel": ("[tasks, queries, shots]", (tasks, queries, posterior.real.shape[1])),
        "kernel_itself": ("[tasks, queries]", (tasks, queries)),
    }
    for name, value in more.items():
        wanted = posterior.around_prior if name == "prior" else posterior.kernel_scale is not None
        if wanted != (value is not None):
            came = "with" if wanted else "without"
            raise ValueError(
                f"{name} must be {'given' if wanted else 'None'}, because the posterior was made {came} a "
                f"{name.split('_')[0]}, got {'None' if value is None else shown(value)}."
            )
        if value is not None:
            axes, shape = shapes[name]
            check_tensor(name, value, axes.strip("[]").replace("*outputs", "..."))
            _check_shape(name, value, axes, shape)


def _check_shape(name: str, value: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must be {axes} = {shape}, got {tuple(value.shape)}.")
