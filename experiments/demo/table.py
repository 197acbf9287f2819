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
from trlearner.experiments.reporting.interval import Interval, interval, paired

Errors = Mapping[str, Sequence[float]]
"""Test MSE of each arm, by name: one value per seed that was finished."""


def table(settings: Settings, errors: Errors, milliseconds: Mapping[str, float]) -> str:
    """All arms, their differences from the first, and what these say."""
    first, *others = errors
    seeds = len(errors[first])
    lines = [
        f"Test MSE on {settings.test_tasks} new sinusoids x {settings.test_queries} queries, after "
        f"{settings.inner_steps} inner steps on {settings.shots} points;",
        f"mean over {seeds} {'seed' if seeds == 1 else 'seeds'} ± 95 % confidence interval "
        f"(Student t), {settings.steps} meta-steps of {settings.tasks} tasks:",
        "",
        f"{'':<20}{'test MSE':>17}{'difference, by seed':>22}{'ms a meta-step':>18}",
        "-" * 77,
        *(_row(name, errors, milliseconds) for name in errors),
        "-" * 77,
        "",
        *(verdict(paired(errors[first], errors[name]), name) for name in others),
    ]
    return "\n".join(lines)


def _row(name: str, errors: Errors, milliseconds: Mapping[str, float]) -> str:
    first = next(iter(errors))
    apart = "" if name == first else str(paired(errors[first], errors[name]))
    time = f"{milliseconds[name]:.1f}" if name in milliseconds else "as above"
    return f"{name:<20}{interval(errors[name])!s:>17}{apart:>22}{time:>18}"


def verdict(difference: Interval, name: str) -> str:
    """Whether a paired difference (an arm minus the first) can be told from zero."""
    if difference.half_width is None:
        return f"{name}: one seed says nothing about how much seeds differ, so there is no verdict."
    if not math.isfinite(difference.mean):
        return f"{name}: at least one run diverged, so there is nothing to compare."
    if not difference.excludes_zero():
        return f"{name} makes no difference that can be told from zero at the 95 % level."
    way = "lowers" if difference.mean < 0 else "raises"
    return f"{name} {way} the test MSE: the difference can be told from zero at the 95 % level."


def record(
    settings: Settings, errors: Errors, milliseconds: Mapping[str, float], interrupted: bool
) -> dict[str, Any]:
    """Everything of the table and what it depends on, for a JSON file."""
    first, *others = errors
    return {
        "settings": asdict(settings),
        "seeds": list(range(len(errors[first]))),
        "interrupted": interrupted,
        "arms": {
            name: {
                "test_mse": list(values),
                **asdict(interval(values)),
                "milliseconds": milliseconds.get(name),
            }
            for name, values in errors.items()
        },
        "differences": {name: _difference(errors[first], errors[name]) for name in others},
        "versions": versions(),
    }


def _difference(first: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    difference = paired(first, other)
    return {
        "test_mse": [b - a for a, b in zip(first, other, strict=True)],
        **asdict(difference),
        "distinguishable": difference.excludes_zero(),
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
