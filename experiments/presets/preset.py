"""What a problem is usually run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from trlearner.experiments.presets.config import Config

DOMAINS = ("regression", "images", "drugs", "pose")
"""Each is a module of `data` with its `PROBLEMS`, and one beside this with their `PRESETS`."""


@dataclass(frozen=True)
class Memory:
    """What a memory of training tasks holds.

    Attributes:
        tasks: So many training tasks, or all, if there are no more.
        samples: So many samples of each.
        steps: The most inner steps; by default those of `TaskMemory.remember`.
    """

    tasks: int
    samples: int
    steps: int | None = None


@dataclass(frozen=True)
class Preset:
    """Settings of a problem that differ from `Config`.

    Attributes:
        values: By name of the setting.
        source: Whose they are.
        memory: What ``--memory`` remembers; ``None`` where classes change from task to task, so that
            remembered models would only harm.
    """

    values: Mapping[str, Any]
    source: str
    memory: Memory | None = None


def presets() -> dict[str, Preset]:
    """Every preset, by the name of its problem."""
    found: dict[str, Preset] = {}
    for domain in DOMAINS:
        found |= import_module(f"trlearner.experiments.presets.{domain}").PRESETS
    return found


def config_of(problem: str, **changes: Any) -> Config:
    """A problem's preset with changes.

    Raises:
        ValueError: There is no such problem.
    """
    known = presets()
    if problem not in known:
        raise ValueError(f"problem must be one of {', '.join(known)}, got {problem!r}.")
    return Config(problem=problem, **{**known[problem].values, **changes})
