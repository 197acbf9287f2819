"""learn2learn's MAML from its sources: the package itself builds and imports no more."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from trlearner.experiments.bench.contender import Unavailable

VARIABLE = "TRLEARNER_LEARN2LEARN"
"""The environment variable with the folder of its sources; ``--learn2learn`` sets it."""


def learn2learn_maml() -> Any:
    """The module ``learn2learn.algorithms.maml``, with next to nothing of the rest imported.

    Raises:
        Unavailable: It is not to be had, and why.
    """
    path = os.environ.get(VARIABLE)
    try:
        if path is None:
            return importlib.import_module("learn2learn.algorithms.maml")
        return _from_sources(Path(path))
    except Exception as error:  # its import fails in many ways
        raise Unavailable(
            f"import learn2learn.algorithms.maml: {error}. Its sources serve as well: "
            "--learn2learn FOLDER, a clone of github.com/learnables/learn2learn."
        ) from error


def _from_sources(folder: Path) -> Any:
    """Imports it under empty parents, so that their `__init__` does not import the rest."""
    root = folder if (folder / "algorithms").is_dir() else folder / "learn2learn"
    if not (root / "algorithms" / "maml.py").is_file():
        raise FileNotFoundError(f"no learn2learn/algorithms/maml.py in {folder}")
    before = {name: module for name, module in sys.modules.items() if _is_theirs(name)}
    for name in before:
        del sys.modules[name]
    try:
        for name, place in (("learn2learn", root), ("learn2learn.algorithms", root / "algorithms")):
            parent = sys.modules[name] = ModuleType(name)
            parent.__path__ = [str(place)]
        return importlib.import_module("learn2learn.algorithms.maml")
    finally:  # nobody else should take the empty parents for the real package
        for name in [name for name in sys.modules if _is_theirs(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_theirs(name: str) -> bool:
    return name.partition(".")[0] == "learn2learn"
