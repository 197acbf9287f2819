"""Which models are remembered: those that are sound, and would not ruin answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trlearner.base.types import LossFn
from trlearner.base.warn import warn
from trlearner.engines.adapted import Adapted
from trlearner.engines.collected_models import Predict
from trlearner.learners.protocol import Learner
from trlearner.memory.known import own_generator
from trlearner.memory.labels import NOISE, Labels
from trlearner.memory.remembered import Remembered, finite
from trlearner.memory.stop import learn
from trlearner.tasks.samples import Samples

NOT_FINITE = "not finite"
WORSE = "worse than a constant"
OUTSIDE = "outside the range of labels"

SLACK = 1.25
"""A model may be so many times as bad as a constant: held-out samples are few, and where labels are mostly
noise half of all sound models would be left out by chance."""

RANGES = 3.0
"""Answers may lie so many ranges of the labels from their mean. Sound models stay within one or two, also
between and beyond their samples; those that ruin answers are off by tens to millions."""

PROBES = 1000
"""About so many inputs of remembered tasks are every model asked about."""

Ask = Callable[[Samples], Tensor]
"""What every model says of every task's samples ``[tasks, models, samples, ...]``."""


class Kept(NamedTuple):
    """What is to be remembered of some tasks."""

    tasks: Tensor  # which of them [tasks]
    labels: Labels  # of all tasks remembered so far
    left_out: dict[str, int]  # how many tasks are not, by reason

    def with_others(self, left_out: dict[str, int]) -> dict[str, int]:
        """How many of these tasks and of others are left out, by reason."""
        return {n: left_out.get(n, 0) + self.left_out.get(n, 0) for n in left_out | self.left_out}


def learned(
    learner: Learner,
    samples: Samples,
    loss_fn: LossFn,
    steps: int,
    held_out: float,
    labels: Labels,
    size: int,
) -> tuple[Adapted, Kept]:
    """Adapts to known tasks: all models, and which are sound.

    Args:
        learner: Adapts.
        samples: All samples of the tasks.
        loss_fn: For one task.
        steps: The most inner steps.
        held_out: The share of samples that is held out; 0 for none, and models that are finite are sound.
        labels: Of the tasks remembered before.
        size: So many models are asked at once.

    Raises:
        ValueError: No model is sound.
    """
    models, answers, held, seen = learn(learner, samples, loss_fn, steps, held_out)
    labels = labels.with_these(samples)
    faults = {NOT_FINITE: ~finite(models.fast)}
    if answers is not None:
        those = Remembered(models.fast, models.state)
        faults[WORSE] = worse(answers, held, seen, labels)
        faults[OUTSIDE] = outside(lambda probes: those.say(models, probes, size), samples, labels)
    advice = f"Take fewer than steps={steps}, or a lower inner learning rate."
    tasks, left_out = sort_out(faults, advice)
    return models, Kept(tasks, labels, left_out)


def sound(
    models: list[Predict], samples: Samples, labels: Labels, together: bool, size: int
) -> Kept:
    """Which callables are sound, judged by all samples of their tasks.

    Args:
        models: One for each task.
        samples: All samples of the tasks.
        labels: Of the tasks remembered before.
        together: Ask each callable once for all tasks' samples.
        size: So many models are asked at once.

    Raises:
        ValueError: No model is sound.
    """
    those = Remembered(callables=models, together=together)
    itself = torch.arange(len(models), device=samples.x.device)[:, None]
    answers = those.say_chosen(None, samples, itself, size)[:, 0]
    labels = labels.with_these(samples)
    faults = {NOT_FINITE: ~answers.reshape(len(models), -1).isfinite().all(1)}
    if samples.y.is_floating_point():
        faults[WORSE] = worse(answers, samples, samples, labels)
        faults[OUTSIDE] = outside(lambda probes: those.say(None, probes, size), samples, labels)
    tasks, left_out = sort_out(faults, "Look at how they were adapted.")
    return Kept(tasks, labels, left_out)


def worse(answers: Tensor, held: Samples, learned: Samples, labels: Labels) -> Tensor:
    """Which models ``[tasks]`` predict held-out labels worse than the mean of those that they learned from.

    Errors are measured in units of the labels' variance, output by output, and what is less than noise does
    not count: a task may be a constant.
    """
    varying = labels.varying()
    if answers.shape != held.y.shape or not bool(varying.any()):
        return torch.zeros(len(answers), dtype=torch.bool, device=answers.device)
    unit, real = labels.variance().to(answers.device), held.is_real()

    def errors(predictions: Tensor) -> Tensor:
        each = (predictions.double() - held.y.double()).square() / unit
        each = torch.where(varying, each, 0.0).unsqueeze(-1).flatten(2).sum(2) / varying.sum()
        return torch.where(real, each, 0.0).sum(1) / real.sum(1)

    known = learned.is_real().reshape(*learned.y.shape[:2], *[1] * (learned.y.ndim - 2))
    sums = torch.where(known, learned.y.double(), 0.0).sum(1, keepdim=True)
    constant = sums / known.sum(1, keepdim=True)
    return ~(errors(answers) <= SLACK * errors(constant.expand(held.y.shape)) + NOISE)


def outside(ask: Ask, samples: Samples, labels: Labels) -> Tensor:
    """Which models ``[models]`` leave the range of labels on inputs of remembered tasks.

    None does where labels do not vary, or answers are no estimates of them.
    """
    varying = labels.varying()
    tasks = min(len(samples), max(1, PROBES // samples.x.shape[1]))
    chosen = torch.randperm(len(samples), generator=own_generator())[:tasks]
    probes = samples[chosen.to(samples.x.device)]
    answers = ask(probes)
    if answers.shape[2:] != probes.y.shape[1:] or not bool(varying.any()):
        return torch.zeros(answers.shape[1], dtype=torch.bool, device=answers.device)
    limit = RANGES * (labels.high - labels.low)
    near = ((answers - labels.mean).abs() <= limit) | ~varying
    near = near.unsqueeze(-1).flatten(3).all(3) | ~probes.is_real()[:, None]
    return ~near.all(2).all(0)


def sort_out(reasons: dict[str, Tensor], advice: str) -> tuple[Tensor, dict[str, int]]:
    """Which models to keep ``[models]``, and how many are left out for each reason; a warning says so.

    Args:
        reasons: Which models have a fault, the gravest first; each counts for its first fault only.
        advice: What to do about it.

    Raises:
        ValueError: Nothing is left.
    """
    keep = torch.ones_like(next(iter(reasons.values())))
    counts = {}
    for reason, bad in reasons.items():
        counts[reason] = int((bad & keep).sum())
        keep = keep & ~bad
    if not sum(counts.values()):
        return keep, counts
    told = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    text = f"{sum(counts.values())} of {len(keep)} models are not remembered: {told}. {advice}"
    if not keep.any():
        raise ValueError(text)
    warn(f"{text} memory.left_out counts them.")
    return keep, counts
