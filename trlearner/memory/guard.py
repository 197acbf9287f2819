"""Which models are not remembered, because they would ruin answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trlearner.memory.known import own_generator
from trlearner.memory.labels import NOISE, Labels
from trlearner.samples import Samples
from trlearner.warn import warn

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
