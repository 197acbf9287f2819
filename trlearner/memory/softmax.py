"""The softmax rule: a convex mixture of the models that explain a task's labels best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trlearner.base.types import LossFn
from trlearner.engines.adapted import Models
from trlearner.memory.options import Settings
from trlearner.memory.remembered import Remembered, losses_of
from trlearner.relations.consistency import mix, mixture_kind
from trlearner.tasks.nested import mapped
from trlearner.tasks.samples import Samples


@dataclass(frozen=True, eq=False)
class BySoftmax:
    """Models and their weights ``w_ij = softmax_j(-loss(f_j, support of i) / temperature)``.

    Attributes:
        models: Those that explain each task best, the best first ``[tasks, kept]``.
        losses: Theirs on the support ``[tasks, kept]``; infinite where they are no numbers.
        temperature: Of the weights.
        kind: What is mixed: values, or logits, as probabilities.
    """

    models: Tensor
    losses: Tensor
    temperature: float
    kind: Literal["values", "logits"]

    @property
    def weights(self) -> Tensor:
        """Of the models ``[tasks, kept]``. Rows sum to 1; all are 0 where no model's loss is finite."""
        # Differences first: divided by a low temperature, losses would overflow, and no model have a weight.
        lead = self.losses[:, :1] - self.losses
        return (lead / self.temperature).softmax(1).nan_to_num(0.0)

    def at(self, temperature: float) -> BySoftmax:
        """With another temperature."""
        return replace(self, temperature=temperature)

    def mean(self, own: Tensor | None, others: Tensor) -> Tensor:
        """What the models say together ``[tasks, queries, *outputs]``.

        Tasks that nobody explains, and answers that are no numbers, are the own model's.

        Args:
            own: The own model's answers ``[tasks, queries, *outputs]``, if there is one.
            others: Those of the models ``[tasks, kept, queries, *outputs]``.
        """
        weights, others = self.weights, others.transpose(0, 1)
        if own is None:
            return mix(others, weights, self.kind)
        others = torch.where(others.isfinite(), others, own)
        weights = torch.cat([1 - weights.sum(1, keepdim=True), weights], 1)
        return mix(torch.cat([own[None], others]), weights, self.kind)


def by_softmax(
    settings: Settings, kept: Remembered, loss_fn: LossFn, own: Models | None, support: Samples
) -> BySoftmax:
    """By the softmax rule.

    Args:
        settings: The memory's.
        kept: What it remembers.
        loss_fn: For one task.
        own: The new tasks' own models.
        support: Their support samples.
    """
    kind = mixture_kind(settings.mixture, support.labelled, "softmax")
    said = kept.say(own, support, settings.chunk_size)
    found = best_by_loss(own, loss_fn, said, support, settings.top_k, settings.chunk_size)
    return BySoftmax(*found, settings.temperature, kind)


def best_by_loss(
    own: Models | None,
    loss_fn: LossFn,
    said: Tensor,
    support: Samples,
    kept: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    """The models with the least loss on each task's support, and these losses, both ``[tasks, kept]``.

    Args:
        own: The tasks' own models, which know how the loss is run.
        loss_fn: For one task.
        said: What every model says of every support ``[tasks, models, shots, *outputs]``.
        support: The tasks' support samples.
        kept: How many to choose.
        size: The losses of so many models are computed at once.
    """
    rows = [
        _losses(own, loss_fn, some.transpose(0, 1), support) for some in said.split(size, dim=1)
    ]
    losses = torch.cat(rows).T
    losses = torch.where(losses.isfinite(), losses, torch.inf)
    least, models = losses.topk(min(kept, losses.shape[1]), dim=1, largest=False)
    return models, least


def _losses(own: Models | None, loss_fn: LossFn, said: Tensor, support: Samples) -> Tensor:
    """``[models, tasks]`` from ``[models, tasks, samples, ...]``."""

    def for_all(t: Tensor) -> Tensor:
        return t.expand(len(said), *t.shape).flatten(0, 1)

    mask = None if support.mask is None else for_all(support.mask)
    x, y = mapped(for_all, support.x), mapped(for_all, support.y)
    every = Samples.unchecked(x, y, mask, support.ways)
    return losses_of(own, loss_fn, said.flatten(0, 1), every).reshape(len(said), len(support))
