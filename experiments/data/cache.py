"""Galleries kept in files that are mapped into memory, made once for the same content and settings.

They lie in ``$TRLEARNER_CACHE``, or else in ``~/.cache/trlearner``; deleting them costs only time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from trlearner.experiments.data.files import replaced
from trlearner.experiments.data.gallery import Gallery, Kind


class Draft(NamedTuple):
    """A gallery that is being made.

    Attributes:
        kinds: Its classes.
        shape: Of one image: channels, height, width.
        blocks: All images in order, some at a time: uint8 ``[images, channels, height, width]``.
    """

    kinds: list[Kind]
    shape: tuple[int, int, int]
    blocks: Iterable[np.ndarray]


def folder() -> Path:
    """Where galleries are kept."""
    place = os.environ.get("TRLEARNER_CACHE")
    return Path(place) if place else Path.home() / ".cache" / "trlearner"


def cached(name: str, key: dict[str, Any], make: Callable[[], Draft]) -> Gallery:
    """The gallery that `make` would make, out of a file if one has its key.

    Args:
        name: Begins the file's name.
        key: All that the images depend on, as JSON takes it: contents, settings, versions.
        make: Called if there is no such file.
    """
    text = json.dumps({**key, "format": fingerprint([Path(__file__)])}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    images, index = (folder() / f"{name}-{digest}{end}" for end in (".npy", ".json"))
    if not index.exists():  # written last: where it is, the images are whole
        _write(images, index, make())
    kinds = [Kind(*kind) for kind in json.loads(index.read_text("utf-8"))]
    # Copy on write, for torch warns of memory that it may not write to.
    return Gallery.of(torch.from_numpy(np.load(images, mmap_mode="c", allow_pickle=False)), kinds)


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the files' contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def stamp(files: Iterable[Path], root: Path) -> str:
    """A hash of the files' names, sizes and times, where contents would take too long to read."""
    digest = hashlib.sha256()
    for file in files:
        info = file.stat()
        digest.update(f"{file.relative_to(root)}|{info.st_size}|{info.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write(images: Path, index: Path, draft: Draft) -> None:
    images.parent.mkdir(parents=True, exist_ok=True)
    shape = (sum(kind.size for kind in draft.kinds), *draft.shape)
    with replaced(images) as file:
        array = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
        done = 0
        for block in draft.blocks:
            array[done : done + len(block)] = block
            done += len(block)
        assert done == len(array), f"{done} images were made of {len(array)}"
        array.flush()
        del array
    with replaced(index) as file:
        file.write_text(json.dumps(draft.kinds), "utf-8")
