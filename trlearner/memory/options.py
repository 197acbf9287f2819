"""The settings of a memory, checked whenever they are used: they may have been set anew."""

from __future__ import annotations

from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from trlearner.base.checks import check_choice, check_function, check_number, check_whole, shown
from trlearner.relations.consistency import Mixture
from trlearner.tasks.samples import Samples

RULES = ("gaussian", "softmax")

TUNED = ("share", "neighbours", "spread", "noise", "kernel_scale", "std_scale", "temperature")
"""What `TaskMemory.tune` sets, and a saved memory holds."""


@runtime_checkable
class Settings(Protocol):
    """What `TaskMemory` is set to."""

    rule: Any
    kernel: Any
    neighbours: Any
    spread: Any
    noise: Any
    kernel_scale: Any
    std_scale: Any
    share: Any
    temperature: Any
    mixture: Any
    top_k: Any
    chunk_size: Any


def is_gaussian(settings: Settings, samples: Samples) -> bool:
    """Whether the Gaussian rule is asked for, and these are targets for it."""
    numbers = samples.y.is_floating_point()
    return bool(settings.rule == "gaussian" and numbers and settings.mixture != "logits")


def check_options(settings: Settings) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: Naming one, what it was and what it may be.
        TypeError: A kernel cannot be called.
    """
    check_choice("rule", settings.rule, RULES)
    check_function("kernel", settings.kernel, "(a [n, ...], b [m, ...]) -> [n, m]", optional=True)
    for name in ("neighbours", "top_k", "chunk_size"):
        check_whole(name, getattr(settings, name))
    check_number("spread", settings.spread, least=0)
    check_number("std_scale", settings.std_scale, above=0)
    check_number("temperature", settings.temperature, above=0)
    if settings.share is not None:
        check_number("share", settings.share, least=0, most=1)
    if settings.kernel_scale is not None:
        check_number("kernel_scale", settings.kernel_scale, least=0)
    _check_noise(settings.noise)
    if not isinstance(settings.mixture, str) or settings.mixture not in get_args(Mixture):
        raise ValueError(
            f"mixture must be one of {get_args(Mixture)}, got {shown(settings.mixture)}."
        )


def _check_noise(noise: Any) -> None:
    if noise is None:
        return
    if not isinstance(noise, Tensor):
        check_number("noise", noise, above=0)
    elif not (noise.is_floating_point() and bool((noise.isfinite() & (noise > 0)).all())):
        raise ValueError(
            "noise must be a number above 0, or one for each output as a tensor [*outputs], got "
            f"{shown(noise)}."
        )


def as_noise(values: Tensor) -> float | Tensor:
    """Noise as `TaskMemory.noise` holds it: a number, where there is one output."""
    return float(values) if values.numel() == 1 else values.to(torch.float64)
