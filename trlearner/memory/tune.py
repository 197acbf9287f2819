"""Tunes a memory: tries settings on tasks, and sets those that predict them best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trlearner.base.functional import take
from trlearner.base.types import LossFn
from trlearner.engines.adapted import Models
from trlearner.memory.candidates import (
    Setting,
    Trial,
    Tuned,
    choose,
    gaussian_settings,
    softmax_settings,
    tamed,
)
from trlearner.memory.gaussians import ByGaussians, Gaussians, Kernel, kernel_matrix
from trlearner.memory.labels import Labels
from trlearner.memory.leave_one_out import Judges
from trlearner.memory.options import Settings, as_noise
from trlearner.memory.recall import blend
from trlearner.memory.remembered import Remembered, losses_of, own_predictions
from trlearner.memory.softmax import BySoftmax, best_by_loss
from trlearner.relations.consistency import Mixture, mixture_kind
from trlearner.relations.gaussian import best_models
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.samples import Samples

EXPLODED = 1e30
"""What a loss that is no number counts as: worse than any other, no better than its like."""

NUMBERS = 2**23
"""About so many answers of models are held at once."""
WITHIN = 1.96
"""95 % of the labels should lie within so many standard deviations."""

Own = Callable[[Samples, Tensor], Models | None]
"""The own models of some tasks, from their supports and positions."""


def tune_softmax(settings: Settings, trier: Trier) -> Tuned:
    """Sets share and temperature.

    Args:
        settings: To be set.
        trier: Tries settings.
    """
    trial, unit = trier.softmax(settings.mixture, settings.top_k)
    best, loss, alone = choose(trial)
    settings.share, settings.temperature = best.share, unit * best.temperature
    tasks = trial.losses.shape[1]
    return Tuned(best.share, loss, alone, tasks, temperature=settings.temperature)


def tune_gaussian(settings: Settings, trier: Trier, labels: Labels) -> Tuned:
    """Sets share, K, h, σ² and, with a kernel, b; then the scale of deviations.

    Deviations are scaled so that 95 % of the tasks' labels lie within 1.96 of them.

    Args:
        settings: To be set.
        trier: Tries settings.
        labels: Of the remembered tasks.
    """
    if not labels.count:
        for batch, _ in trier.judges:
            labels = labels.with_these(batch.query)
    unit = labels.variance().to(trier.judges[0][0].query.y.device)
    kernel = settings.kernel
    kernel_unit = 1.0 if kernel is None else float(unit.mean()) / _height(kernel, trier.judges)
    trial = trier.gaussian(kernel, unit, kernel_unit)
    best, loss, alone = choose(trial)
    settings.share, settings.spread = best.share, best.spread
    settings.neighbours = max(1, best.neighbours)
    settings.noise = as_noise(best.noise * unit)
    if kernel is not None:
        settings.kernel_scale = best.kernel_scale * kernel_unit
    if best.share:
        ratios = trier.deviations(best, kernel, unit, kernel_unit)
        settings.std_scale = float(ratios.quantile(0.95)) / WITHIN
    return Tuned(
        best.share,
        loss,
        alone,
        trial.losses.shape[1],
        settings.neighbours,
        best.spread,
        float((best.noise * unit).mean()),
        settings.kernel_scale,
    )


def _height(kernel: Kernel, judges: Judges) -> float:
    """The mean of k(x, x)."""
    values: Sequence[Tensor] = [
        kernel_matrix(kernel, batch.support.x, batch.support.x).diagonal(dim1=1, dim2=2).flatten()
        for batch, _ in judges
    ]
    return max(float(torch.cat(list(values)).mean()), torch.finfo(torch.float32).tiny)


class Asked(NamedTuple):
    """Some tasks, and what models say of them; ``None`` where there is no own model or no kernel."""

    support: Samples
    query: Samples
    own: Models | None
    near: Tensor  # of supports [tasks, kept, shots, *outputs]
    others: Tensor  # of queries [tasks, kept, queries, *outputs]
    on_support: Tensor | None  # of supports, by the own models
    predicted: Tensor | None  # of queries, by the own models
    matrix: Tensor | None  # the kernel on supports
    between: Tensor | None  # the kernel between queries and supports

    def relate(
        self, setting: Setting, kernel: Kernel | None, unit: Tensor, kernel_unit: float
    ) -> tuple[ByGaussians, Tensor, Tensor]:
        """The rule's finding, what its models say of queries, and P."""
        scale = setting.kernel_scale * kernel_unit
        rule = Gaussians(setting.neighbours, setting.spread, setting.noise * unit, kernel, scale)
        near = self.near[:, : setting.neighbours]
        related = rule(near, self.support, self.on_support, self.matrix)
        others = take(self.others, related.models)
        return related, others, related.mean(self.predicted, others, self.between)


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
        for asked in self._ask_all(most, kernel):
            found = []
            for rule, group in itertools.groupby(settings, key=lambda s: s._replace(share=0.0)):
                _, _, mean = asked.relate(rule, kernel, unit, kernel_unit)
                answers = (blend(asked.predicted, mean, s.share, "values") for s in group)
                found += [self._losses(asked.own, answer, asked.query) for answer in answers]
            losses.append(torch.stack(found))
            if asked.predicted is not None:
                alone.append(self._losses(asked.own, asked.predicted, asked.query))
        return Trial(settings, torch.cat(losses, 1), torch.cat(alone) if alone else None)

    def deviations(
        self, setting: Setting, kernel: Kernel | None, unit: Tensor, kernel_unit: float
    ) -> Tensor:
        """How far labels lie from answers, in units of the rule's standard deviation ``[labels]``.

        Args:
            setting: Of the rule.
            kernel: As of `gaussian`.
            unit: As of `gaussian`.
            kernel_unit: As of `gaussian`.
        """
        found = []
        for asked in self._ask_all(setting.neighbours, kernel):
            related, others, mean = asked.relate(setting, kernel, unit, kernel_unit)
            answer = blend(asked.predicted, mean, setting.share, "values")
            deviation = related.deviation(
                asked.predicted, others, mean, setting.share, asked.query, asked.between
            )
            ratios = (asked.query.y - answer).abs() / deviation
            found.append(ratios[asked.query.is_real()].flatten())
        return torch.cat(found)

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
            rule = BySoftmax(models, least, 1.0, mixture_kind(mixture, query.labelled, "softmax"))
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

    def _ask_all(self, most: int, kernel: Kernel | None) -> Iterator[Asked]:
        """What own models and the `most` remembered ones that fit best say of some of the tasks at a time."""
        for (support, query), itself, own in self._chunks(most):
            said = self._said(own, support, itself)
            models = best_models(said, support.y, most, support.mask)
            matrix = between = None
            if kernel is not None:
                matrix = kernel_matrix(kernel, support.x, support.x)
                between = kernel_matrix(kernel, query.x, support.x)
            yield Asked(
                support,
                query,
                own,
                near=take(said, models),
                others=self._asked(own, query, models),
                on_support=None if own is None else own_predictions(own, support),
                predicted=None if own is None else own_predictions(own, query),
                matrix=matrix,
                between=between,
            )

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
