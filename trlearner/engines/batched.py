"""Engine ``batched``: all tasks at once.

Parameters are expanded, not copied, to a leading axis of tasks and the forward is one ``vmap``. The
tasks' losses are independent, so the plain gradient of their sum is each task's own gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.types import Fast, LossFn, State
from trlearner.engines.adapted import Adapted, Engine
from trlearner.engines.embedding import padded
from trlearner.engines.one_task import descent
from trlearner.engines.task_learner import InnerLoop, TaskLearner
from trlearner.tasks.loss import task_loss
from trlearner.tasks.nested import Data
from trlearner.tasks.samples import Samples


def check_masks(learner: TaskLearner, name: str) -> None:
    """Refuse masks where layers would see the samples under them.

    Raises:
        ValueError: With the ways out.
    """
    if learner.couples_samples():
        raise ValueError(
            f"engine={name!r} cannot drop masked samples from layers that couple samples (BatchNorm "
            "with batch statistics). Use engine='loop' or 'auto', tasks of equal size, or GroupNorm."
        )


def embed(learner: TaskLearner, state: State, x: Data, mask: Tensor | None) -> Any:
    """What tasks share, in one call over all their samples: ``[tasks, samples, ...]``."""
    if mask is not None:
        check_masks(learner, "batched")
    if learner.couples_samples():
        learner = _safe(learner, x)
        return _vmap(lambda one: learner.embed(state, one))(x)
    return learner.embed(state, x.flatten(0, 1)).unflatten(0, (len(x), -1))


def adapt(
    learner: TaskLearner,
    state: State,
    features: Data,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    """All tasks' adaptations together: each entry ``[tasks, ...]``."""
    learner = _safe(learner, features)

    def loss_of(model: Fast, h: Data, y: Data, mask: Tensor | None) -> Tensor:
        return task_loss(loss_fn, learner.predict(state, model, h), y, mask)

    losses = _vmap(loss_of, (0, 0, 0, None if support.mask is None else 0))

    def loss_at(fast: Fast) -> Tensor:
        return losses(fast, features, support.y, support.mask).sum()

    lent = InnerLoop(
        features,
        support.y,
        support.mask,
        support.ways,
        steps,
        lift=_vmap,
        spread=lambda fast: {n: t.expand(len(features), *t.shape) for n, t in fast.items()},
        gradient=descent(loss_at),
    )
    return learner.inner(state, lent)


def predict(models: Adapted, features: Data, mask: Tensor | None) -> Any:
    """Every model on its own task: ``[tasks, queries, ...]``."""
    if mask is not None:
        check_masks(models.learner, "batched")
    learner, state = _safe(models.learner, features), models.state
    return _vmap(lambda model, h: learner.predict(state, model, h))(models.fast, features)


def cross(models: Adapted, features: Data, mask: Tensor | None, chosen: Tensor | None) -> Any:
    """Every model on every task: ``[models, tasks, queries, ...]``."""
    if mask is not None:
        check_masks(models.learner, "batched")
    learner, state, fast = _safe(models.learner, features), models.state, models.fast

    def one(model: Fast, h: Data) -> Any:
        return learner.predict(state, model, h)

    if chosen is not None:
        asked = {name: values[chosen] for name, values in fast.items()}
        return _vmap(_vmap(one), (0, None))(asked, features)
    if learner.couples_samples():
        return _vmap(_vmap(one, (None, 0)), (0, None))(fast, features)
    # Each model runs once over all tasks' queries together.
    together = _vmap(one, (0, None))(fast, features.flatten(0, 1))
    return together.unflatten(1, (len(features), -1))


def loss(loss_fn: LossFn, predictions: Data, y: Data, mask: Tensor | None) -> Tensor:
    """Each task's loss on its real samples: ``[tasks]``."""
    in_dims = (0, 0, None if mask is None else 0)
    return _vmap(lambda p, t, m: task_loss(loss_fn, p, t, m), in_dims)(predictions, y, mask)


def _safe(learner: TaskLearner, inputs: Data) -> TaskLearner:
    """The learner, with its embeddings' padding rows held fixed wherever there may be some."""
    floats = inputs.is_floating_point()
    if floats and not any(isinstance(m, nn.Embedding) for m in learner.modules()):
        return learner
    return padded(learner, inputs)


class NotBatchable(RuntimeError):
    """``torch.vmap`` has no way to run a layer of the model."""


def _vmap(function, in_dims=0):  # type: ignore[no-untyped-def]
    # "different" gives every task noise of its own, as a loop would.
    mapped = torch.vmap(function, in_dims=in_dims, randomness="different")

    def run(*arguments):  # type: ignore[no-untyped-def]
        # Attention takes a kernel without a derivative where nothing seems to require a gradient, as it
        # seems of all tensors under vmap.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return mapped(*arguments)
        except RuntimeError as error:
            if isinstance(error, NotBatchable) or not any(w in str(error) for w in OF_VMAP):
                raise
            raise NotBatchable(
                "torch.vmap, by which engine='batched' runs all tasks at once, cannot run this model: "
                f"{error}\nUse engine='auto' or 'loop'."
            ) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    return run


OF_VMAP = ("Batching rule not implemented", "vmap")
"""What tells torch's complaints about ``vmap`` from others."""

ENGINE = Engine("batched", embed, adapt, predict, cross, loss, together=True)
