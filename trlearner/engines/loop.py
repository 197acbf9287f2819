"""Engine ``loop``: one task after the other, with plain ``torch.func.functional_call``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from trlearner.functional import per_task
from trlearner.loss import task_loss
from trlearner.rows import Rows, unbound
from trlearner.samples import Samples
from trlearner.seam import Engine, Gradients, InnerLoop, TaskLearner
from trlearner.types import Fast, LossFn, State


def embed(learner: TaskLearner, state: State, x: Tensor, mask: Tensor | None) -> Tensor:
    """What tasks share, of each task's real inputs: ``[tasks, samples, ...]``."""
    return per_task(lambda i, keep: learner.embed(state, x[i][keep]), mask, len(x))


def adapt(
    learner: TaskLearner,
    state: State,
    features: Tensor,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    """Each task's adaptation in turn: each entry ``[tasks, ...]``."""
    return Rows(
        _adapt_task(learner, state, h, y, support.ways, loss_fn, steps)
        for h, y in real_samples(features, support)
    )


def predict(
    learner: TaskLearner, state: State, fast: Fast, features: Tensor, mask: Tensor | None
) -> Tensor:
    """Every model on its own task: ``[tasks, queries, ...]``."""
    models = unbound(fast)
    return per_task(
        lambda i, keep: learner.predict(state, models[i], features[i][keep]), mask, len(features)
    )


def cross(
    learner: TaskLearner,
    state: State,
    fast: Fast,
    features: Tensor,
    mask: Tensor | None,
    neighbours: Tensor | None,
) -> Tensor:
    """Every model on every task: ``[models, tasks, queries, ...]``."""
    models, tasks = unbound(fast), len(features)
    if neighbours is None and mask is None and not learner.couples_samples():
        queries = rearrange(features, "tasks queries ... -> (tasks queries) ...")
        rows = torch.stack([learner.predict(state, model, queries) for model in models])
        return rearrange(
            rows, "models (tasks queries) ... -> models tasks queries ...", tasks=tasks
        )
    # One row asks one model for each task.
    asked = [[j] * tasks for j in range(len(models))] if neighbours is None else neighbours.tolist()
    return torch.stack(
        [
            per_task(
                lambda i, keep, row=row: learner.predict(  # type: ignore[misc]
                    state, models[row[i]], features[i][keep]
                ),
                mask,
                tasks,
            )
            for row in asked
        ]
    )


def loss(loss_fn: LossFn, predictions: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Each task's loss on its real samples: ``[tasks]``."""
    keep = [slice(None) if mask is None else mask[i] for i in range(len(y))]
    return torch.stack([task_loss(loss_fn, predictions[i][k], y[i][k]) for i, k in enumerate(keep)])


def gradients(loss_at: Callable[[Fast], Tensor], fast: Fast, first_order: bool) -> Gradients:
    """The gradient of ``loss_at(fast)`` by autograd; with a graph where one can be of use."""
    if not torch.is_grad_enabled():
        with torch.enable_grad():
            return gradients(loss_at, {n: t.detach() for n, t in fast.items()}, first_order=True)
    fast = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in fast.items()}
    value = loss_at(fast)
    check_depends(value, fast)
    found = torch.autograd.grad(
        value, list(fast.values()), create_graph=not first_order, allow_unused=True
    )
    return dict(zip(fast, found, strict=True))


def check_depends(value: Tensor, fast: Fast) -> None:
    """Refuse a support loss that nothing which adapts can change.

    Raises:
        ValueError: Naming what adapts.
    """
    if not value.requires_grad:
        raise ValueError(
            f"the support loss depends on none of the adapted parameters {sorted(fast)}. Check that "
            "the loss uses the predictions and that the model does not detach them."
        )


def real_samples(features: Tensor, support: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Each task's features and targets without padding."""
    for i in range(len(features)):
        keep = slice(None) if support.mask is None else support.mask[i]
        yield features[i][keep], support.y[i][keep]


def _adapt_task(
    learner: TaskLearner,
    state: State,
    features: Tensor,
    y: Tensor,
    ways: int | None,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    def loss_at(fast: Fast) -> Tensor:
        return task_loss(loss_fn, learner.predict(state, fast, features), y)

    lent = InnerLoop(
        features,
        y,
        None,
        ways,
        steps,
        lift=lambda function: function,
        spread=lambda shared: shared,
        gradient=lambda fast, first_order: gradients(loss_at, fast, first_order),
    )
    return learner.inner(state, lent)


ENGINE = Engine("loop", embed, adapt, predict, cross, loss)
