"""What a comparison ends with: numbers over seeds, a table, a plain sentence."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from trlearner.experiments.demo.comparison import Settings
from trlearner.experiments.interval import Interval, interval, paired

Errors = Mapping[str, Sequence[float]]
"""Test MSE of each arm, by name: one value per seed that was finished."""


def table(settings: Settings, errors: Errors, milliseconds: Mapping[str, float]) -> str:
    """Both arms, their difference, and what it says."""
    (plain, related), seeds = errors, len(next(iter(errors.values())))
    difference = paired(errors[plain], errors[related])
    lines = [
        f"Test MSE on {settings.test_tasks} new sinusoids x {settings.test_queries} queries, after "
        f"{settings.inner_steps} inner steps on {settings.shots} points;",
        f"mean over {seeds} {'seed' if seeds == 1 else 'seeds'} ± 95 % confidence interval "
        f"(Student t), {settings.steps} meta-steps of {settings.tasks} tasks:",
        "",
        f"{'':<24}{'test MSE':>17}{'ms a meta-step (median)':>28}",
        "-" * 69,
        *(
            f"{name:<24}{interval(errors[name])!s:>17}{milliseconds[name]:>28.1f}"
            for name in (plain, related)
        ),
        "-" * 69,
        f"{'difference, by seed':<24}{difference!s:>17}",
        "",
        verdict(difference),
    ]
    return "\n".join(lines)


def verdict(difference: Interval) -> str:
    """Whether the paired difference (TRLearner minus without) can be told from zero."""
    if difference.half_width is None:
        return "One seed says nothing about how much seeds differ: no interval, no verdict."
    if not math.isfinite(difference.mean):
        return "At least one run diverged, so there is nothing to compare."
    if not difference.excludes_zero():
        return (
            "The difference is not distinguishable from zero at the 95 % level: here TRLearner\n"
            "can be said neither to help nor to harm."
        )
    if difference.mean < 0:
        return (
            "TRLearner lowers the test MSE: the difference is distinguishable from zero at the\n"
            "95 % level."
        )
    return (
        "TRLearner does not help here, it raises the test MSE: the difference is\n"
        "distinguishable from zero at the 95 % level."
    )


def record(
    settings: Settings, errors: Errors, milliseconds: Mapping[str, float], interrupted: bool
) -> dict[str, Any]:
    """Everything of the table and what it depends on, for a JSON file."""
    plain, related = errors
    difference = paired(errors[plain], errors[related])
    by_seed = [b - a for a, b in zip(errors[plain], errors[related], strict=True)]
    return {
        "settings": asdict(settings),
        "seeds": list(range(len(errors[plain]))),
        "interrupted": interrupted,
        "arms": {
            name: {
                "test_mse": list(values),
                **asdict(interval(values)),
                "milliseconds": milliseconds[name],
            }
            for name, values in errors.items()
        },
        "difference": {
            "test_mse": by_seed,
            **asdict(difference),
            "distinguishable": difference.excludes_zero(),
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of all that the numbers may depend on."""
    try:
        own = importlib.metadata.version("trlearner")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "trlearner": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
