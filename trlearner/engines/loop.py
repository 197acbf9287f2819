"""Engine ``loop``: one task after the other, with plain ``torch.func.functional_call``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trlearner.base.types import Fast, LossFn, State
from trlearner.engines.adapted import Adapted, Engine
from trlearner.engines.one_task import adapt_task
from trlearner.engines.task_learner import TaskLearner
from trlearner.tasks.loss import task_losses
from trlearner.tasks.nested import Data, joined, per_task
from trlearner.tasks.rows import Rows, unbound
from trlearner.tasks.samples import Samples


def embed(learner: TaskLearner, state: State, x: Data, mask: Tensor | None) -> Any:
    """What tasks share, of each task's real inputs: ``[tasks, samples, ...]``."""
    return per_task(lambda i, keep: learner.embed(state, x[i][keep]), mask, len(x))


def adapt(
    learner: TaskLearner,
    state: State,
    features: Data,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    """Each task's adaptation in turn: each entry ``[tasks, ...]``."""
    return Rows(
        adapt_task(learner, state, h, y, support.ways, loss_fn, steps)
        for h, y in real_samples(features, support)
    )


def predict(models: Adapted, features: Data, mask: Tensor | None) -> Any:
    """Every model on its own task: ``[tasks, queries, ...]``."""
    learner, state, each = models.learner, models.state, unbound(models.fast)
    return per_task(
        lambda i, keep: learner.predict(state, each[i], features[i][keep]), mask, len(features)
    )


def cross(models: Adapted, features: Data, mask: Tensor | None, chosen: Tensor | None) -> Any:
    """Every model on every task: ``[models, tasks, queries, ...]``."""
    learner, state, each = models.learner, models.state, unbound(models.fast)
    tasks = len(features)
    if chosen is None and mask is None and not learner.couples_samples():
        queries = features.flatten(0, 1)
        rows = joined(torch.stack, [learner.predict(state, model, queries) for model in each])
        return rows.unflatten(1, (tasks, -1))
    # One row asks one model for each task.
    asked = [[j] * tasks for j in range(len(each))] if chosen is None else chosen.tolist()
    return joined(
        torch.stack,
        [
            per_task(
                lambda i, keep, row=row: learner.predict(  # type: ignore[misc]
                    state, each[row[i]], features[i][keep]
                ),
                mask,
                tasks,
            )
            for row in asked
        ],
    )


def real_samples(features: Data, support: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Each task's features and targets without padding."""
    for i in range(len(features)):
        keep = slice(None) if support.mask is None else support.mask[i]
        yield features[i][keep], support.y[i][keep]


ENGINE = Engine("loop", embed, adapt, predict, cross, task_losses)
