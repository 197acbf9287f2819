"""What scores are made of, and how it is taken from tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from trlearner.base.types import LossFn, State
from trlearner.engines.adapted import Engine, adapt
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.tasks.nested import flat
from trlearner.tasks.samples import Samples


class Evidence(NamedTuple):
    """What scores are made of.

    Attributes:
        features: Of every task's support samples, ``[tasks, samples, features]``.
        targets: Their targets, ``[tasks, samples, ...]``.
        mask: ``[tasks, samples]``, true where a sample is real; ``None`` where all are.
        ways: The number of classes, for labels.
        gradient_norm: Of each task's support gradient before adaptation, ``[tasks]``; zeros where a learner
            descends no gradient.
    """

    features: Tensor
    targets: Tensor
    mask: Tensor | None
    ways: int | None
    gradient_norm: Tensor


def gather(
    engine: Engine,
    learner: Learner,
    state: State,
    support: Samples,
    loss_fn: LossFn,
    extractor: Extractor | None,
) -> Evidence:
    """The evidence of tasks at a state; features are the extractor's, or else what the learner embeds."""
    with torch.no_grad():
        if extractor is not None:
            features = extractor.run(learner, state, {}, support.x, support.mask)
        else:
            features = engine.embed(learner, state, support.x, support.mask)
    features = flat(features, 2)
    if not features.is_floating_point():
        features = features.to(torch.get_default_dtype())
    norms = gradient_norms(engine, learner, state, support, loss_fn)
    targets = support.y if isinstance(support.y, Tensor) else flat(support.y, 2)
    return Evidence(features, targets, support.mask, support.ways, norms)


def gradient_norms(
    engine: Engine, learner: Learner, state: State, support: Samples, loss_fn: LossFn
) -> Float[Tensor, " tasks"]:
    """The norm of each task's support gradient before adaptation, over all that adapts."""
    if learner.steps == 0:
        return torch.zeros(len(support), device=support.x.device)
    with torch.no_grad():
        models = adapt(engine, learner, state, support, loss_fn, 0)
    fast = {n: t.detach().requires_grad_() for n, t in models.fast.items()}
    models = replace(models, fast=fast, state={n: t.detach() for n, t in state.items()})
    with torch.enable_grad():
        losses = models.losses(loss_fn, models.predict(models.embed(support)), support)
        found = torch.autograd.grad(losses.sum(), list(fast.values()), allow_unused=True)
    return norms([g for g in found if g is not None])


def norms(gradients: Sequence[Tensor]) -> Float[Tensor, " tasks"]:
    """The norm of each task's gradient, of which some parts ``[tasks, ...]`` are given.

    Example:
        >>> norms([torch.tensor([[3.0], [0.0]]), torch.tensor([4.0, 1.0])])
        tensor([5., 1.])
    """
    if not gradients:
        raise ValueError("gradients must hold at least one tensor [tasks, ...], got none.")
    # In half precision the squares of small gradients are zero, and those of large ones infinite.
    wide = [
        g.reshape(len(g), -1).to(torch.promote_types(torch.float32, g.dtype)) for g in gradients
    ]
    return torch.stack([g.square().sum(1) for g in wide]).sum(0).sqrt()
