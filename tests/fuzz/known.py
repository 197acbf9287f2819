"""Faults that are known and not mended yet: what is found of them is counted apart and fails nothing.

Empty this list when they are mended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuzz.draw_case import Case


@dataclass(frozen=True)
class Known:
    """A known fault, and which findings are it."""

    fault: str
    covers: Callable[[Case, str], bool]  # of a case and the engine or variant that failed


ONE_BY_ONE = ("loop", "higher", "channels_last", "collect")
"""Ways that never run under ``vmap``."""


def has(case: Case, *layers: str) -> bool:
    """Whether the case's model has one of these layers."""
    return any(layer in layers for layer in (case.model.first, *case.model.layers))


KNOWN: tuple[Known, ...] = (
    Known(
        "the row of padding_idx has a gradient under vmap",
        lambda case, way: has(case, "embedding padded") and way not in ONE_BY_ONE,
    ),
    Known(
        "UpdateEncoder takes no parameter of no axes",
        lambda case, way: has(case, "gain") and case.encoder == "update",
    ),
    Known(
        "TNet takes no weight_norm",
        lambda case, way: has(case, "weight_norm") and case.learner == "tnet",
    ),
    Known(
        "class weights with masks: found out only where the first support shows it",
        lambda case, way: case.unequal and case.targets == "classes weighted",
    ),
    Known(
        "InstanceNorm's second derivative in evaluation mode on `channels_last`",
        lambda case, way: has(case, "instance_norm tracked") and not case.model.training,
    ),
    Known("LPPool: no finite gradient at 0", lambda case, way: has(case, "lp_pool")),
)


def known(case: Case, way: str) -> str | None:
    """The known fault that a finding is put down to, if there is one."""
    return next((k.fault for k in KNOWN if k.covers(case, way)), None)
