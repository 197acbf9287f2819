"""New tasks related to remembered models, by a memory's settings."""

from __future__ import annotations

import torch

from trlearner.consistency import mixture_kind
from trlearner.engines.adapted import Models
from trlearner.memory.by_gaussians import ByGaussians, Gaussians
from trlearner.memory.by_softmax import BySoftmax, best_by_loss
from trlearner.memory.labels import NOISE, Labels
from trlearner.memory.options import Settings
from trlearner.memory.remembered import Remembered, own_predictions
from trlearner.samples import Samples
from trlearner.types import LossFn


def is_gaussian(settings: Settings, samples: Samples) -> bool:
    """Whether the Gaussian rule is asked for, and these are targets for it."""
    numbers = samples.y.is_floating_point()
    return bool(settings.rule == "gaussian" and numbers and settings.mixture != "logits")


def by_gaussians(
    settings: Settings, kept: Remembered, labels: Labels, own: Models | None, support: Samples
) -> ByGaussians:
    """By the Gaussian rule.

    Args:
        settings: The memory's.
        kept: What it remembers.
        labels: Of the remembered tasks.
        own: The new tasks' own models.
        support: Their support samples.

    Raises:
        ValueError: Nothing says how noisy labels are.
    """
    noise, scale, unit = settings.noise, settings.kernel_scale, labels.variance()
    if noise is None:
        if not labels.count:
            raise ValueError(
                "noise must be given where the memory knows no labels, got None. Pass the tasks of your "
                "models, memory.remember_models(models, tasks), call memory.tune(validation_tasks), or set "
                "memory.noise."
            )
        noise = NOISE * unit
    if scale is None:
        scale = float(unit.mean()) if labels.count else 1.0
    device = support.y.device
    noise = torch.as_tensor(noise, dtype=torch.float64, device=device)
    rule = Gaussians(settings.neighbours, settings.spread, noise, settings.kernel, scale)
    said = kept.say(own, support, settings.chunk_size)
    prior = None if own is None or settings.kernel is None else own_predictions(own, support)
    return rule(said, support, prior)


def by_softmax(
    settings: Settings, kept: Remembered, loss_fn: LossFn, own: Models | None, support: Samples
) -> BySoftmax:
    """By the softmax rule; arguments as of `by_gaussians`, and the loss for one task."""
    kind = mixture_kind(settings.mixture, support.y, "softmax")
    said = kept.say(own, support, settings.chunk_size)
    found = best_by_loss(own, loss_fn, said, support, settings.top_k, settings.chunk_size)
    return BySoftmax(*found, settings.temperature, kind)
