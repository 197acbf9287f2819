"""Settings of a memory, tried on tasks whose queries are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trlearner.batch import TaskBatch
from trlearner.consistency import Mixture, mixture_kind
from trlearner.engines.adapted import Models
from trlearner.gaussian import best_models
from trlearner.memory.by_gaussians import Gaussians, Kernel, kernel_matrix
from trlearner.memory.by_softmax import BySoftmax, best_by_loss
from trlearner.memory.leave_one_out import Judges
from trlearner.memory.recall import blend
from trlearner.memory.remembered import Remembered, losses_of, own_predictions
from trlearner.memory.tuning import (
    Trial,
    gaussian_settings,
    softmax_settings,
    tamed,
)
from trlearner.samples import Samples
from trlearner.types import LossFn

EXPLODED = 1e30
"""What a loss that is no number counts as: worse than any other, no better than its like."""

NUMBERS = 2**23
"""About so many answers of models are held at once."""

Own = Callable[[Samples, Tensor], Models | None]
"""The own models of some tasks, from their supports and positions."""


@dataclass(frozen=True)
class Trier:
    """Tries settings on tasks.

    Attributes:
        remembered: Models to ask.
        loss_fn: For one task.
        own: The tasks' own models.
        has_own: Whether there are any.
        judges: The tasks.
        chunk_size: So many models are asked at once.
    """

    remembered: Remembered
    loss_fn: LossFn
    own: Own
    has_own: bool
    judges: Judges
    chunk_size: int

    def gaussian(self, kernel: Kernel | None, unit: Tensor, kernel_unit: float) -> Trial:
        """Every setting of the Gaussian rule on every task.

        Args:
            kernel: Of the rule.
            unit: The labels' variance ``[*outputs]``.
            kernel_unit: The labels' variance over the kernel's mean k(x, x).
        """
        settings = gaussian_settings(len(self.remembered), kernel is not None, self.has_own)
        most = max(setting.neighbours for setting in settings)
        losses, alone = list[Tensor](), list[Tensor]()
        for (support, query), itself, own in self._chunks(most):
            said = self._said(own, support, itself)
            models = best_models(said, support.y, most, support.mask)
            near, others = _chosen(said, models), self._asked(own, query, models)
            on_support = None if own is None else own_predictions(own, support)
            predicted = None if own is None else own_predictions(own, query)
            matrix = between = None
            if kernel is not None:
                matrix = kernel_matrix(kernel, support.x, support.x)
                between = kernel_matrix(kernel, query.x, support.x)
            found = []
            for rule, group in itertools.groupby(settings, key=lambda s: s._replace(share=0.0)):
                scale = rule.kernel_scale * kernel_unit
                made = Gaussians(rule.neighbours, rule.spread, rule.noise * unit, kernel, scale)
                related = made(near[:, : rule.neighbours], support, on_support, matrix)
                mean = related.mean(predicted, _chosen(others, related.models), between)
                answers = (blend(predicted, mean, s.share, "values") for s in group)
                found += [self._losses(own, answer, query) for answer in answers]
            losses.append(torch.stack(found))
            if predicted is not None:
                alone.append(self._losses(own, predicted, query))
        return Trial(settings, torch.cat(losses, 1), torch.cat(alone) if alone else None)

    def softmax(self, mixture: Mixture, top_k: int) -> tuple[Trial, float]:
        """Every setting of the softmax rule on every task, and the unit of temperatures.

        Args:
            mixture: What is mixed.
            top_k: So many models.
        """
        settings = softmax_settings(self.has_own)
        kept, alone = [], list[Tensor]()
        for (support, query), itself, own in self._chunks(top_k):
            said = self._said(own, support, itself)
            models, least = best_by_loss(own, self.loss_fn, said, support, top_k, self.chunk_size)
            others = self._asked(own, query, models)
            predicted = None if own is None else own_predictions(own, query)
            rule = BySoftmax(models, least, 1.0, mixture_kind(mixture, query.y, "softmax"))
            first = rule.mean(None, others) if predicted is None else predicted
            alone.append(self._losses(own, first, query))
            kept.append((own, query, predicted, others, rule))
        unit = float(tamed(torch.cat(alone)).mean().clamp(min=torch.finfo(torch.float32).tiny))
        losses = []
        for own, query, predicted, others, rule in kept:
            found = []
            for setting in settings:
                mean = rule.at(unit * setting.temperature).mean(predicted, others)
                answer = blend(predicted, mean, setting.share, rule.kind)
                found.append(self._losses(own, answer, query))
            losses.append(torch.stack(found))
        known = torch.cat(alone) if self.has_own else None
        return Trial(settings, torch.cat(losses, 1), known), unit

    def _chunks(
        self, kept: int
    ) -> Iterator[tuple[tuple[Samples, Samples], Tensor | None, Models | None]]:
        before = 0
        for batch, itself in self.judges:
            asked = batch.support.y[0].numel() * len(self.remembered)
            size = max(1, NUMBERS // max(1, asked, batch.query.y[0].numel() * kept))
            for first in range(0, len(batch), size):
                part = slice(first, first + size)
                some: TaskBatch = batch[part]
                places = before + torch.arange(len(batch))[part]
                own = self.own(some.support, places)
                left = None if itself is None else itself[part]
                yield (some.support, some.query), left, own
            before += len(batch)

    def _said(self, own: Models | None, support: Samples, itself: Tensor | None) -> Tensor:
        """What models say of supports; the model of the task itself says nothing."""
        if not len(self.remembered):
            return support.y.new_zeros(len(support), 0, *support.y.shape[1:])
        said = self.remembered.say(own, support, self.chunk_size)
        if itself is None:
            return said
        said = said.clone()
        said[torch.arange(len(said)), itself] = torch.nan
        return said

    def _asked(self, own: Models | None, query: Samples, models: Tensor) -> Tensor:
        if not models.shape[1]:
            return query.y.new_zeros(len(query), 0, *query.y.shape[1:])
        return self.remembered.say_chosen(own, query, models, self.chunk_size)

    def _losses(self, own: Models | None, predictions: Tensor, query: Samples) -> Tensor:
        losses = losses_of(own, self.loss_fn, predictions, query).double()
        return losses.nan_to_num(nan=EXPLODED).clamp(max=EXPLODED)


def _chosen(predictions: Tensor, models: Tensor) -> Tensor:
    """``[tasks, kept, samples, ...]`` of ``[tasks, models, samples, ...]``."""
    return predictions[torch.arange(len(models), device=models.device)[:, None], models]
