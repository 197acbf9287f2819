"""One task's adaptation, and the gradient that it descends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trlearner.base.types import Fast, LossFn, State
from trlearner.engines.task_learner import Gradients, InnerLoop, TaskLearner
from trlearner.tasks.loss import task_loss
from trlearner.tasks.nested import Data


def adapt_task(
    learner: TaskLearner,
    state: State,
    features: Data,
    targets: Data,
    ways: int | None,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    """What one task adapts, with plain calls of the learner's functions.

    Args:
        learner: Adapts.
        state: Its parameters and buffers.
        features: What `TaskLearner.embed` made of the task's support inputs ``[samples, ...]``.
        targets: The task's support targets ``[samples, ...]``.
        ways: The number of classes, if there are any.
        loss_fn: The inner loss.
        steps: Inner steps.
    """

    def loss_at(fast: Fast) -> Tensor:
        return task_loss(loss_fn, learner.predict(state, fast, features), targets)

    lent = InnerLoop(
        features,
        targets,
        None,
        ways,
        steps,
        lift=lambda function: function,
        spread=dict,
        gradient=descent(loss_at),
    )
    return learner.inner(state, lent)


def descent(loss_at: Callable[[Fast], Tensor]) -> Callable[[Fast, bool], Gradients]:
    """``gradient(fast, first_order)`` of a loss, by autograd; with a graph where one can be of use."""

    def gradient(fast: Fast, first_order: bool) -> Gradients:
        if not torch.is_grad_enabled():
            with torch.enable_grad():
                return gradient({n: t.detach() for n, t in fast.items()}, True)
        fast = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in fast.items()}
        value = loss_at(fast)
        check_depends(value, fast)
        found = torch.autograd.grad(
            value, list(fast.values()), create_graph=not first_order, allow_unused=True
        )
        return dict(zip(fast, found, strict=True))

    return gradient


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
