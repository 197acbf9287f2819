"""Objects to look at: made up by the recipes of `shapes`, or found in a folder of meshes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trlearner.experiments.data import shapes
from trlearner.experiments.data.listing import inside, rows
from trlearner.experiments.data.mesh import READERS, Mesh, load

UPRIGHT = {
    "y": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "z": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
}
"""By the axis that is up in a file, what makes it y, and the front, then towards -y, look to +z."""

SELF_SIMILAR = 0.75
"""Bicycles and cars, front against back, lie at 0.73 and below; a flat TV, buses and a lorry above 0.88."""


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        name: Unique among its like.
        group: Its category.
        mesh: Makes its surface, in the unit sphere.
    """

    name: str
    group: str
    mesh: Callable[[], Mesh]


def invented(families: Iterable[str], count: int, seed: int) -> list[Thing]:
    """So many objects of each family in turn, named by family and seed.

    Example:
        >>> [thing.name for thing in invented(["mug", "car"], 3, seed=10)]
        ['mug 10', 'car 11', 'mug 12']
    """
    names = list(families)
    kinds = [(names[i % len(names)], seed + i) for i in range(count)]
    return [Thing(f"{kind} {i}", kind, partial(shapes.make, kind, i)) for kind, i in kinds]


def found(folder: Path, up: str = "y") -> list[Thing]:
    """All meshes of a folder and the folders in it, in a shuffled order that their names decide.

    Where there is an ``index.csv``, it lists them: file, category; as ``model_rotation`` the nine numbers
    of a matrix, row by row, for those that it stands upright; and as ``azimuth_self_iou`` how much of
    an object falls upon itself when it is turned, by which it is left out above `SELF_SIMILAR`. Else
    the category is the name of the folder that a mesh lies in.

    Raises:
        ValueError: There are none, or up is neither y nor z.
    """
    if up not in UPRIGHT:
        raise ValueError(f"up must be 'y' or 'z', the upward axis of the meshes, got {up!r}.")
    things = [
        Thing(name, group, partial(_read, folder / name, up, turn))
        for name, (group, turn) in _listed(folder).items()
    ]
    if not things:
        raise ValueError(f"{folder} must hold meshes ({', '.join(READERS)}), got none.")
    return sorted(things, key=lambda thing: hashlib.sha256(thing.name.encode()).digest())


def _listed(folder: Path) -> Mapping[str, tuple[str, str]]:
    """Category and rotation of every mesh, by its place in the folder."""
    index = folder / "index.csv"
    if index.exists():
        listed = {}
        for number, row in rows(index, ("file", "category")):
            inside(folder, row["file"])
            turn, similar = row.get("model_rotation", ""), row.get("azimuth_self_iou", "")
            if turn:
                _numbers(turn, 9, f"{index}:{number}: model_rotation")
            if (
                _numbers(similar or "0", 1, f"{index}:{number}: azimuth_self_iou")[0]
                <= SELF_SIMILAR
            ):
                listed[row["file"]] = row["category"], turn
        return listed
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS)
    return {path.relative_to(folder).as_posix(): (path.parent.name, "") for path in files}


def _numbers(text: str, count: int, what: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{what} must be {count} finite numbers, got {text!r:.100}.")
    return numbers


def _read(path: Path, up: str, turn: str) -> Mesh:
    mesh = load(path).turned(UPRIGHT[up])
    if turn:
        numbers = [float(word) for word in turn.split()]
        mesh = mesh.turned([numbers[i : i + 3] for i in (0, 3, 6)])
    return mesh.normalized()
