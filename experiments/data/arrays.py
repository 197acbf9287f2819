"""Arrays that take long to make, kept in the cache folder under a key that says all they depend on."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from trlearner.experiments.data.cache import folder
from trlearner.experiments.data.files import replaced

Arrays = Mapping[str, np.ndarray]


def stored(name: str, depends_on: Any, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` would make, out of a file if one has their key and is whole.

    Args:
        name: Begins the file's name.
        depends_on: All that the arrays depend on, as JSON takes it, so that no file is stale.
        make: Called if there is no such file.
    """
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:24]
    path = folder() / f"{name}-{digest}.npz"
    try:
        # Opened here, for NumPy leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        made = make()
    try:
        _write(path, made)
    except OSError as error:
        warnings.warn(
            f"{path} can't be written ({error}), so this is computed anew in every run. Set "
            "TRLEARNER_CACHE to a folder that can be written.",
            stacklevel=2,
        )
    return made


def _write(path: Path, arrays: Arrays) -> None:
    """All or nothing, however many processes write the same file at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as beside, beside.open("xb") as file:
        np.savez(file, **arrays)
