"""Relation-aware consistency: related tasks' models must agree with the truth on each other's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from trlearner.base.checks import check_loss_fn, check_number, check_tensor, check_whole
from trlearner.base.types import LossFn
from trlearner.tasks.ignored import check_labelled
from trlearner.tasks.loss import task_loss
from trlearner.tasks.samples import check_mask, check_real

Normalize = Literal["sum", "softmax", "quotient"] | Callable[[Tensor, Tensor], Tensor]
"""A name, or ``(relations [tasks, models], counts [tasks, models]) -> weights``, with `counts` true where a
model may have weight."""
Mixture = Literal["auto", "values", "logits"]

FLOOR = 1e-6
"""What `normalize="sum"` adds to every relation: a row without positive relations is uniform."""


def relation_weights(
    relations: Float[Tensor, "tasks models"],
    normalize: Normalize = "sum",
    *,
    temperature: float | Tensor = 0.1,
    top_k: int | None = None,
) -> Float[Tensor, "tasks models"]:
    """Mixture weights w_ij of each task's neighbours; rows sum to 1, the diagonal is 0.

    - ``"sum"``: (relu(m_ij) + eps) / sum_{j != i} (relu(m_ij) + eps), eps = 1e-6;
    - ``"softmax"``: softmax over j != i of m_ij / temperature;
    - ``"quotient"``: m_ij / sum_{j != i} m_ij, the paper's (arXiv 2409.08474, eq. 5). Cosines can be
      negative, so weights can be, and the divisor can be almost nothing: it is kept 1e-12 from 0.

    Args:
        relations: M of a batch.
        normalize: See above; or a function ``(relations, counts) -> weights``, where `counts` is true where a
            model may have weight.
        temperature: For ``"softmax"``, above 0; a tensor's value is not looked at.
        top_k: Only so many neighbours with the largest m_ij keep weight; all, if there are no more.

    Returns:
        w, in single precision where M has half.

    Example:
        >>> m = torch.tensor([[1.0, 0.2, 0.6], [0.2, 1.0, 0.2], [0.6, 0.2, 1.0]])
        >>> relation_weights(m)
        tensor([[0.0000, 0.2500, 0.7500],
                [0.5000, 0.0000, 0.5000],
                [0.7500, 0.2500, 0.0000]])
    """
    check_tensor("relations", relations, "tasks, models")
    tasks = len(relations)
    if relations.shape != (tasks, tasks):
        raise ValueError(
            f"relations must be [tasks, models] with as many models as tasks, got "
            f"{tuple(relations.shape)}. Select this batch's rows and columns first."
        )
    check_temperature(temperature)
    check_whole("top_k", top_k, optional=True)
    return weights_of(relations, normalize, temperature, neighbours(relations, top_k))


def neighbours(
    relations: Float[Tensor, "tasks models"], top_k: int | None
) -> Shaped[Tensor, "tasks top_k"] | None:
    """Which other models have the largest relation to each task; ``None`` where all others do."""
    tasks = len(relations)
    if top_k is None or top_k >= tasks - 1:
        return None
    itself = torch.eye(tasks, dtype=torch.bool, device=relations.device)
    return relations.masked_fill(itself, -torch.inf).topk(top_k, dim=1).indices


def weights_of(
    relations: Float[Tensor, "tasks models"],
    normalize: Normalize,
    temperature: float | Tensor,
    chosen: Shaped[Tensor, "tasks top_k"] | None,
) -> Float[Tensor, "tasks models"]:
    """As `relation_weights`, unchecked, where `chosen` are the `neighbours`."""
    # In half precision what keeps divisors from 0 would be 0 itself.
    relations = relations.to(torch.promote_types(torch.float32, relations.dtype))
    counts = ~torch.eye(len(relations), dtype=torch.bool, device=relations.device)
    if chosen is not None:
        counts = torch.zeros_like(counts).scatter(1, chosen, True)
    if normalize == "softmax":
        return _by_softmax(relations, counts, temperature)
    if normalize == "sum":
        return _by_sum(relations, counts)
    if normalize == "quotient":
        return _by_quotient(relations, counts)
    if callable(normalize):
        return _by_function(normalize, relations, counts)
    raise ValueError(
        f"normalize must be 'sum', 'softmax', 'quotient' or a function, got {normalize!r}."
    )


def _by_sum(relations: Tensor, counts: Tensor) -> Tensor:
    raw = torch.where(counts, relations.relu() + FLOOR, 0.0)
    return raw / raw.sum(1, keepdim=True).clamp(min=FLOOR)


def _by_softmax(relations: Tensor, counts: Tensor, temperature: float | Tensor) -> Tensor:
    # A row with nothing to keep (one task) is all zero rather than NaN.
    # Taken off before the division: a low temperature would make infinities, and NaN of their difference.
    some = counts.any(1, keepdim=True)
    most = torch.where(counts, relations, -torch.inf).detach().amax(1, keepdim=True)
    most = torch.where(some, most, 0.0)
    scores = torch.where(counts, (relations - most) / temperature, -torch.inf)
    scores = torch.where(some, scores, 0.0)
    return torch.where(counts, scores.softmax(1), 0.0)


def _by_quotient(relations: Tensor, counts: Tensor) -> Tensor:
    raw = torch.where(counts, relations, 0.0)
    total = raw.sum(1, keepdim=True)
    tiny = torch.where(total < 0, -1e-12, 1e-12).to(total.dtype)
    return raw / torch.where(total.abs() < 1e-12, tiny, total)


def _by_function(
    normalize: Callable[[Tensor, Tensor], Tensor], relations: Tensor, counts: Tensor
) -> Tensor:
    weights = normalize(relations, counts)
    if not isinstance(weights, Tensor) or weights.shape != relations.shape:
        got = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(
            f"normalize must return weights [tasks, models] = {list(relations.shape)}, got {got}."
        )
    return torch.where(counts, weights, 0.0)


def mix(
    predictions: Float[Tensor, "models tasks queries *outputs"],
    weights: Float[Tensor, "tasks models"],
    mixture: Literal["values", "logits"],
    alignment: Float[Tensor, "models tasks classes classes"] | None = None,
) -> Float[Tensor, "tasks queries *outputs"]:
    """Each task's mixture of what the models say of its queries: P_i = sum_j w_ij f_j(X_i).

    Logits are mixed as probabilities and returned as their logarithms, which cross-entropy takes for
    logits. An alignment translates class c' of the model to class c of the task first.

    Args:
        predictions: f_j(X_i) at ``[j, i]``.
        weights: w_ij at ``[i, j]``.
        mixture: ``"values"``, or ``"logits"`` with classes on the last axis.
        alignment: A_ji, with A[j, i, c, c'] the share of the model's class c' in the task's class c.
    """
    if alignment is not None:
        both = torch.promote_types(predictions.dtype, alignment.dtype)
        predictions, alignment = predictions.to(both), alignment.to(both)
    share = weights.T.reshape(*weights.T.shape, *[1] * (predictions.ndim - 2))
    if mixture == "values":
        if alignment is not None:
            predictions = einsum(
                predictions,
                alignment,
                "models tasks queries theirs, models tasks classes theirs -> "
                "models tasks queries classes",
            )
        return (share * predictions).sum(0)
    if predictions.ndim != 4 or predictions.shape[-1] < 2:
        raise ValueError(
            "mixture='logits' needs predictions [models, tasks, queries, classes] of at least two classes, "
            f"got {tuple(predictions.shape)}. Pass mixture='values' if these are no class logits "
            "(counts, binary or dense targets)."
        )
    logs = predictions.log_softmax(-1)
    if alignment is not None:
        logs = torch.logsumexp(logs[..., None, :] + log_weights(alignment)[:, :, None], dim=-1)
    # Zero weights are masked before the logarithm, or the gradient is NaN.
    return torch.logsumexp(logs + log_weights(share), dim=0)


def log_weights(weights: Tensor) -> Tensor:
    """Their logarithms, minus infinity where they are not above zero; gradients stay finite."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1.0).log(), -torch.inf)


def relation_consistency(
    predictions: Float[Tensor, "models tasks queries *outputs"],
    targets: Shaped[Tensor, "tasks queries *labels"],
    relations: Float[Tensor, "tasks models"],
    loss_fn: LossFn,
    *,
    mask: Bool[Tensor, "tasks queries"] | None = None,
    mixture: Mixture = "auto",
    normalize: Normalize = "sum",
    temperature: float | Tensor = 0.1,
    top_k: int | None = None,
    alignment: Float[Tensor, "models tasks classes classes"] | None = None,
) -> Float[Tensor, ""]:
    """Loss of each task's queries under its related tasks' models.

    L_TR = mean_i loss_fn(sum_{j != i} w_ij * f_j(X_i), Y_i),  w_ij = m_ij / sum_{j != i} m_ij
    (arXiv 2409.08474, eq. 5; deviation: by default w = (relu(m) + eps) / sum(relu(m) + eps), which
    cannot divide by almost nothing.)

    Args:
        predictions: Every model on every task's queries, f_j(X_i) at ``[j, i]``.
        targets: The tasks' own targets.
        relations: M, as `TaskRelation` returns it.
        loss_fn: ``(predictions [queries, ...], targets [queries, ...]) -> scalar``, for one task.
        mask: True where a query is real; at least one of each task.
        mixture: ``"values"``, ``"logits"``, or ``"auto"``: logits for integer targets.
        normalize: As in `relation_weights`.
        temperature: As in `relation_weights`.
        top_k: As in `relation_weights`.
        alignment: As in `mix`; made by `trlearner.relations.align`.

    Returns:
        L_TR; 0 for a single task, which has no neighbours.

    Raises:
        ValueError: Shapes disagree, a task has no query that counts, or negative weights would have to be
            mixed as probabilities.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> m = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> relation_consistency(torch.zeros(3, 3, 5, 1), torch.ones(3, 5, 1), m, mse_loss).item()
        1.0
    """
    check_predictions(predictions, targets, relations)
    check_loss_fn(loss_fn)
    check_alignment(alignment, predictions)
    if mask is not None:
        check_mask(mask, targets, "queries")
        check_real(
            mask, "query", "Leave these tasks out of predictions, targets, relations and mask."
        )
    check_labelled(loss_fn, targets, mask)
    if len(relations) == 1:
        return predictions.sum() * 0
    kind = mixture_kind(mixture, not targets.is_floating_point(), normalize)
    weights = relation_weights(relations, normalize, temperature=temperature, top_k=top_k)
    mixed = mix(predictions, weights, kind, alignment)
    losses = [
        task_loss(loss_fn, mixed[i], targets[i], None if mask is None else mask[i])
        for i in range(len(mixed))
    ]
    return torch.stack(losses).mean()


def mixture_kind(
    mixture: Mixture, labelled: bool, normalize: Normalize
) -> Literal["values", "logits"]:
    """What ``"auto"`` stands for, and whether it goes with the weights.

    Raises:
        ValueError: It does not, or there is no such mixture.
    """
    if mixture not in ("auto", "values", "logits"):
        raise ValueError(f"mixture must be 'auto', 'values' or 'logits', got {mixture!r}.")
    if mixture == "auto":
        mixture = "logits" if labelled else "values"
    if mixture == "logits" and normalize == "quotient":
        raise ValueError(
            "mixture='logits' mixes probabilities, but normalize='quotient' can give negative weights. "
            "Use normalize='sum' or 'softmax', or mixture='values'."
        )
    return mixture


def check_predictions(predictions: Tensor, targets: Tensor, relations: Tensor) -> None:
    """Refuse shapes that do not fit together.

    Raises:
        TypeError: One of them is no tensor.
        ValueError: Naming the argument, what it is and what it should be.
    """
    check_tensor("predictions", predictions, "...")
    check_tensor("targets", targets, "tasks, queries, ...")
    check_tensor("relations", relations, "tasks, models")
    if predictions.ndim < 3 or predictions.shape[0] != predictions.shape[1]:
        raise ValueError(
            "predictions must be [models, tasks, queries, ...] with as many models as tasks, got "
            f"{tuple(predictions.shape)}. adapted.cross(xq) returns them so."
        )
    if 0 in predictions.shape[:3]:
        raise ValueError(
            f"predictions must have at least one task and one query, got {tuple(predictions.shape)}. "
            "Leave the relation term out of an empty batch."
        )
    if tuple(relations.shape) != tuple(predictions.shape[:2]):
        raise ValueError(
            f"relations must be [tasks, models] = {tuple(predictions.shape[:2])} to match predictions "
            f"{tuple(predictions.shape)}, got {tuple(relations.shape)}.\nIf they were computed on a "
            "larger pool, select this batch's rows and columns first."
        )
    if tuple(targets.shape[:2]) != tuple(predictions.shape[1:3]):
        raise ValueError(
            f"targets must be [tasks, queries, ...] = {tuple(predictions.shape[1:3])} to match "
            f"predictions {tuple(predictions.shape)}, got {tuple(targets.shape)}."
        )


def check_temperature(temperature: object) -> None:
    """Refuse a temperature that is no number above 0; a tensor's is not looked at, for it may be on a GPU.

    Raises:
        ValueError: Naming it.
    """
    if not (isinstance(temperature, Tensor) and temperature.ndim == 0):
        check_number("temperature", temperature, above=0)


def check_alignment(alignment: Tensor | None, predictions: Tensor) -> None:
    """Refuse an alignment of other tasks or classes than the predictions'.

    Raises:
        ValueError: Naming its shape and what it should be.
    """
    if alignment is None:
        return
    check_tensor("alignment", alignment, "...")
    tasks, classes = predictions.shape[:2], predictions.shape[3:]
    if predictions.ndim != 4 or alignment.shape != (*tasks, *classes, *classes):
        raise ValueError(
            "alignment must be [models, tasks, classes, classes] to match predictions [models, tasks, "
            f"queries, classes] = {tuple(predictions.shape)}, got {tuple(alignment.shape)}. "
            "tr.relations.sinkhorn(prototypes) of the same tasks returns it so."
        )
