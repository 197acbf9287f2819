"""Which settings of a memory are tried, and which are chosen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHARES = (0.25, 0.5, 0.75, 1.0)
"""What `tune` tries beside 0."""

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the softmax rule, in units of the learner's own loss."""

NEIGHBOURS = (20, 80, 320)
"""K of the Gaussian rule; also all models, where there are at most `ALL`."""

ALL = 1000

SPREADS = (0.0, 0.25, 0.5, 1.0)
"""h of the Gaussian rule."""

NOISES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""σ² of the Gaussian rule, in units of the labels' variance."""

NOISES_WITH_KERNEL = (0.01, 0.1, 0.3, 1.0)
"""With a kernel; there labels may be mostly noise."""

KERNEL_SCALES = (0.03, 0.1, 0.3, 1.0)
"""b of the Gaussian rule, in units of the labels' variance over the kernel's mean k(x, x)."""


class Setting(NamedTuple):
    """One choice of everything that is tuned, in the units above."""

    share: float
    neighbours: int = 1
    spread: float = 0.0
    noise: float = 1.0
    kernel_scale: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Tuned:
    """What `TaskMemory.tune` found; the memory has these settings now.

    Attributes:
        share: Of the remembered models in the answers.
        loss: With these settings, on the tasks' queries; no task counts for more than all but the worst
            twentieth do for the learner alone.
        alone: That of the tasks' own models; NaN without any.
        tasks: How many tasks said so.
        neighbours: K, of the Gaussian rule.
        spread: h, of the Gaussian rule.
        noise: σ², of the Gaussian rule; its mean over outputs.
        kernel_scale: b, with a kernel.
        temperature: Of the softmax rule.
    """

    share: float
    loss: float
    alone: float
    tasks: int
    neighbours: int | None = None
    spread: float | None = None
    noise: float | None = None
    kernel_scale: float | None = None
    temperature: float | None = None


class Trial(NamedTuple):
    """How tasks fare with each setting, and alone."""

    settings: list[Setting]
    losses: Tensor  # [settings, tasks]
    alone: Tensor | None  # [tasks]; where there are own models


def gaussian_settings(models: int, kernel: bool, own: bool) -> list[Setting]:
    """What is tried of the Gaussian rule; settings that differ in their share only lie together.

    Args:
        models: How many are remembered.
        kernel: Whether there is one.
        own: Whether tasks have models of their own.
    """
    counts = sorted({min(k, models) for k in (*NEIGHBOURS, *([models] if models <= ALL else []))})
    return [
        Setting(share, k, h, noise, scale)
        for k, h, noise, scale, share in itertools.product(
            counts,
            SPREADS if models else (0.0,),
            NOISES_WITH_KERNEL if kernel else NOISES,
            KERNEL_SCALES if kernel else (1.0,),
            SHARES if own else (1.0,),
        )
    ]


def softmax_settings(own: bool) -> list[Setting]:
    """What is tried of the softmax rule."""
    shares = SHARES if own else (1.0,)
    return [Setting(share, temperature=t) for t in TEMPERATURES for share in shares]


def choose(trial: Trial) -> tuple[Setting, float, float]:
    """The setting with the least loss, its loss and that of the own models.

    The share is 0 unless the others help for sure: what is chosen on one half of the tasks must lower the
    loss on the other half, by more than two standard errors of the paired differences.
    """
    if trial.alone is None:
        capped = trial.losses.clamp(max=cap(trial.losses).min())
        best = int(capped.mean(1).argmin())
        return trial.settings[best], float(capped[best].mean()), float("nan")
    gains = tamed(trial.alone - trial.losses)
    best = int(gains.mean(1).argmax())
    setting, losses = trial.settings[best], trial.losses[best]
    if not sure(gains):
        setting, losses = setting._replace(share=0.0), trial.alone
    told = [float(each.clamp(max=cap(trial.alone)).mean()) for each in (losses, trial.alone)]
    return setting, told[0], told[1]


def sure(gains: Tensor) -> bool:
    """Whether the best of some settings is better than nothing: ``gains [settings, tasks]``."""
    halves = gains[:, ::2], gains[:, 1::2]
    if halves[1].shape[1] == 0:
        return False
    found = torch.cat([b[a.mean(1).argmax()] for a, b in (halves, halves[::-1])])
    return bool(found.mean() > 2 * found.std() / len(found) ** 0.5)


def tamed(values: Tensor) -> Tensor:
    """The largest twentieth lowered to what lies below: a task that exploded must not drown all others."""
    return values.clamp(max=cap(values))


def cap(values: Tensor) -> Tensor:
    """What all but the largest twentieth do not exceed."""
    return values.quantile(0.95, dim=-1, keepdim=True, interpolation="lower")
