"""Omniglot (Lake et al. 2015): 1,623 handwritten characters of 50 alphabets, 20 drawings of each.

Read as its authors publish it, as PNG files in folders (``images_background/Greek/character01/...``), or
packed into two ``.npz``, of which ``alphabets.csv`` names the rows. Ink is 1, paper 0; 105 x 105
pixels are averaged to 28 x 28. In all splits, a character turned by 90, 180 or 270 degrees is
another class (Vinyals et al. 2016, arXiv 1606.04080).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from trlearner.experiments.data import listing
from trlearner.experiments.data.cache import Draft, cached, fingerprint, stamp
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.problem import Request, need
from trlearner.experiments.data.setting import option

PARTS = "images_background", "images_evaluation"
SIDE = 28
UNPACKED = 2**30
"""Bytes; the drawings of all characters take a quarter of that."""


def by_character(request: Request) -> dict[str, Gallery]:
    """1,100 characters to train on, 100 for validation, 423 to test, of whatever alphabets."""
    return characters(request).split("name", {"train": 1100, "validation": 100, "test": 423})


def by_alphabet(request: Request) -> dict[str, Gallery]:
    """Other alphabets in every split, as the authors have them.

    Of their 30 background alphabets, 5 are for validation; their 20 evaluation ones are to test.
    """
    gallery = characters(request)
    if not all(kind.group for kind in gallery.kinds):
        raise ValueError(
            f"{request.data_dir}/images/omniglot does not say which character is of which alphabet. Put "
            "alphabets.csv (part,alphabet,first_id,last_id) beside the .npz files, or use images/omniglot."
        )
    background, evaluation = (
        gallery.where(lambda kind, part=part: kind.group.startswith(part)) for part in PARTS
    )
    return {**background.split("group", {"train": 25, "validation": 5}), "test": evaluation}


def characters(request: Request) -> Gallery:
    """All characters; each one's group is its part and alphabet, e.g. ``images_background/Greek``."""
    folder = need(
        request,
        "images/omniglot",
        "Omniglot",
        "github.com/brendenlake/omniglot (images_background.zip and images_evaluation.zip, unpacked)",
        "images/glyphs",
    )
    code = fingerprint([Path(__file__)])
    packed = [folder / f"{part}.npz" for part in PARTS]
    if all(file.exists() for file in packed):
        files = [*packed, *folder.glob("alphabets.csv")]
        key = {"code": code, "files": fingerprint(files)}
        gallery = cached("omniglot", key, lambda: _packed(folder))
    else:
        drawings = sorted(file for part in PARTS for file in folder.glob(f"{part}/*/*/*.png"))
        if not drawings:
            raise ValueError(
                f"{folder} must hold {PARTS[0]} and {PARTS[1]}, as folders or as .npz files, and holds "
                f"{sorted(path.name for path in folder.iterdir())}."
            )
        key = {"code": code, "files": stamp(drawings, folder)}
        gallery = cached("omniglot", key, lambda: _unpacked(drawings))
    return gallery.turned() if option(request.options, "rotations", True, bool) else gallery


class Row(NamedTuple):
    """A line of alphabets.csv."""

    part: str
    alphabet: str
    first: int
    last: int


def _packed(folder: Path) -> Draft:
    parts = [_images(folder / f"{part}.npz") for part in PARTS]
    rows = []
    if (folder / "alphabets.csv").exists():
        columns = ("part", "alphabet", "first_id", "last_id")
        for _, line in listing.rows(folder / "alphabets.csv", columns):
            ids = int(line["first_id"]), int(line["last_id"])
            rows.append(Row(line["part"], line["alphabet"], *ids))
    kinds = [
        _kind(rows, part, number, paper.shape[1])
        for part, papers, begin in zip(PARTS, parts, (1, 1 + len(parts[0])), strict=True)
        for number, paper in enumerate(papers[:, None], begin)
    ]
    blocks = (_small(~paper[:, None]) for papers in parts for paper in papers)
    return Draft(kinds, (1, SIDE, SIDE), blocks)


def _images(path: Path) -> np.ndarray:
    """The array of a file, if it is one of drawings and does not unpack to more than there can be."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(one.file_size for one in archive.infolist()) > UNPACKED:
                raise ValueError(f"it unpacks to more than {UNPACKED} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            images: np.ndarray = arrays["images"]
        if images.dtype != np.bool_ or images.ndim != 4 or not images.size:
            raise ValueError(f"it holds {images.dtype} {list(images.shape)}")
    except Exception as error:  # a damaged archive raises almost anything
        raise ValueError(
            f"{path} must hold the array images, bool [characters, drawings, height, width]: {error}."
        ) from None
    return images


def _kind(rows: list[Row], part: str, number: int, size: int) -> Kind:
    """The class of a character by its number from 1 to 1,623."""
    for row in rows:
        if row.first <= number <= row.last:
            name = f"{row.alphabet}/character{number - row.first + 1:02d}"
            return Kind(name, f"{row.part}/{row.alphabet}", size)
    return Kind(f"{part}/{number:04d}", "", size)


def _unpacked(drawings: list[Path]) -> Draft:
    by_class: dict[Path, list[Path]] = {}
    for file in drawings:
        by_class.setdefault(file.parent, []).append(file)
    kinds = [
        Kind(
            f"{path.parent.name}/{path.name}",
            f"{path.parent.parent.name}/{path.parent.name}",
            len(files),
        )
        for path, files in by_class.items()
    ]
    return Draft(kinds, (1, SIDE, SIDE), _read(by_class))


def _read(by_class: dict[Path, list[Path]]) -> Iterator[np.ndarray]:
    from PIL import Image

    for files in by_class.values():
        papers = []
        for file in files:
            try:
                with Image.open(file) as image:
                    papers.append(np.asarray(image.convert("1")))
            except Exception as error:  # a broken picture raises almost anything
                raise ValueError(f"{file} cannot be read as an image: {error}.") from error
        yield _small(~np.stack(papers)[:, None])


def _small(ink: np.ndarray) -> np.ndarray:
    """Ink ``[drawings, 1, height, width]`` averaged to 28 x 28, as uint8."""
    small = F.interpolate(
        torch.from_numpy(ink).float(), (SIDE, SIDE), mode="bilinear", antialias=True
    )
    return small.mul_(255).round_().clamp_(0, 255).byte().numpy()
