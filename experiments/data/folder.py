"""Pictures in folders of one's own, e.g. miniImageNet, shrunk once to squares of one size.

Any of three layouts, for the splits ``train``, ``val`` and ``test``:

- ``train.csv`` with the columns ``filename,label``, pictures in ``images/`` (Ravi & Larochelle 2017);
- ``train.txt`` with one class a line, its pictures in the folder of that name;
- ``train/<class>/<pictures>``.

Pictures are stretched to a square, as is usual for miniImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from trlearner.experiments.data.cache import Draft, cached, fingerprint, stamp
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.listing import inside, rows
from trlearner.experiments.data.problem import Request, need
from trlearner.experiments.data.setting import Range, option

SPLITS = {"train": "train", "validation": "val", "test": "test"}
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

PIXELS = 89_000_000
"""More than a camera takes: a small file of this many is made to fill the memory. Pillow warns here."""

Classes = Mapping[str, Sequence[Path]]
"""The pictures of each class."""


def by_list(request: Request) -> dict[str, Gallery]:
    """The folder's own splits; options: ``folder`` (below the data folder), ``size``, ``channels``."""
    if "folder" not in request.options:
        raise ValueError(
            'images/folder needs to know which: pass the option folder, e.g. "images/mini-imagenet", '
            "a folder below the data folder."
        )
    name = str(request.options["folder"])
    where = "whoever publishes it, or lay out your own pictures (see trlearner/experiments/data/folder.py)"
    root = need(request, name, "The folder of pictures", where, "images/glyphs")
    splits = {split: _listed(root, short) for split, short in SPLITS.items()}
    seen: dict[str, str] = {}
    for split, classes in splits.items():
        for kind in classes:
            if seen.setdefault(kind, split) != split:
                raise ValueError(
                    f"{root}: the class {kind!r} is in the splits {seen[kind]} and {split}. A class may be "
                    "in one only."
                )
    pictures = {(kind, split): files for split, c in splits.items() for kind, files in c.items()}
    gallery = shrunk(root, pictures, request)
    return {s: gallery.where(lambda kind, s=s: kind.group == s) for s in SPLITS}


def shrunk(
    root: Path, pictures: Mapping[tuple[str, str], Sequence[Path]], request: Request
) -> Gallery:
    """All pictures in one array, as squares.

    Args:
        root: The folder that they are in.
        pictures: By the name and the group of their class.
        request: Options ``size`` (84) and ``channels`` (3, or 1 for shades of gray).
    """
    size = option(request.options, "size", 84, int, Range(1, 1024))
    channels = option(request.options, "channels", 3, Literal[1, 3])
    kinds = [Kind(*names, len(files)) for names, files in pictures.items()]
    files = [file for group in pictures.values() for file in group]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(files)} listed pictures are not there, e.g. {missing[0]}. Unpack them "
            "there, or take them off the lists."
        )
    key = {"code": fingerprint([Path(__file__)]), "files": stamp(files, root), "kinds": kinds}
    blocks = (_read(file, size, channels)[None] for file in files)
    draft = Draft(kinds, (channels, size, size), blocks)
    return cached(root.name, {**key, "shape": draft.shape}, lambda: draft)


def _listed(root: Path, split: str) -> Classes:
    """The pictures of a split by class, in the order of names."""
    table, names, folder = root / f"{split}.csv", root / f"{split}.txt", root / split
    if table.is_file():
        found = _of_table(table)
    elif names.is_file():
        words = names.read_text("utf-8").splitlines()
        folders = {name.strip(): inside(root, name.strip()) for name in words if name.strip()}
        found = {name: list(_pictures(path)) for name, path in folders.items()}
    elif folder.is_dir():
        found = {path.name: list(_pictures(path)) for path in folder.iterdir() if path.is_dir()}
    else:
        raise ValueError(
            f"{root} has no {split}.csv (filename,label), no {split}.txt (a class a line) and no folder "
            f"{split} (a folder for each class): one of them must say what is in this split."
        )
    empty = sorted(kind for kind, files in found.items() if not files)
    if empty or not found:
        raise ValueError(f"{root}: no picture in the split {split!r}, classes {empty or 'none'}.")
    return {kind: sorted(found[kind]) for kind in sorted(found)}


def _of_table(table: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for _, line in rows(table, ("filename", "label")):
        picture = inside(table.parent / "images", line["filename"])
        found.setdefault(line["label"], []).append(picture)
    return found


def _pictures(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise ValueError(f"the class {folder.name!r} is listed, but there is no folder {folder}.")
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _read(file: Path, size: int, channels: int) -> np.ndarray:
    """A picture as uint8 ``[channels, size, size]``."""
    from PIL import Image

    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(file) as image:
            if math.prod(image.size) > PIXELS:
                raise ValueError(f"it has {math.prod(image.size)} pixels, more than {PIXELS}")
            image.draft(mode, (2 * size, 2 * size))  # lets a JPEG decode at a part of its size
            square = image.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
    except Exception as error:  # a broken picture, or a bomb, raises almost anything
        raise ValueError(
            f"{file} cannot be read as an image ({error}). Replace it, or take it out."
        ) from error
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)
