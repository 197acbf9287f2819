"""Faults that are known and not mended yet: what is found of them is counted apart and fails nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuzz.draw_case import Case


@dataclass(frozen=True)
class Known:
    """A known fault, and which findings are it."""

    fault: str
    covers: Callable[[Case, str], bool]  # of a case and the engine or variant that failed


KNOWN: tuple[Known, ...] = ()


def known(case: Case, way: str) -> str | None:
    """The known fault that a finding is put down to, if there is one."""
    return next((k.fault for k in KNOWN if k.covers(case, way)), None)
