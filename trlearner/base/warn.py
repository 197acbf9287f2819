"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

LIBRARY = ("trlearner.", "torch.", "jaxtyping.")
USERS = ("trlearner.experiments", "trlearner.integrations")


def warn(message: str) -> None:
    """A `UserWarning` located at the call that led into the library."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _ours(module: str) -> bool:
    return module.startswith(LIBRARY) and not module.startswith(USERS)
