"""Triangle meshes, read from ``.off``, ``.obj`` and ``.stl`` files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Line = tuple[int, list[str]]
"""The number of a line and its words."""

FARTHEST = 1e15
"""Of coordinates: their squares are still numbers in single precision."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface of triangles; y is up and the front looks towards +z.

    Attributes:
        vertices: ``[vertices, 3]``.
        triangles: Three vertices each, ``[triangles, 3]``.
    """

    vertices: Tensor
    triangles: Tensor

    def normalized(self) -> Mesh:
        """In the unit sphere: the bounding box is centred, the farthest vertex at distance one."""
        used = self.vertices[self.triangles.flatten()]
        centre = (used.amin(0) + used.amax(0)) / 2
        radius = (used - centre).norm(dim=1).amax().clamp_min(1e-12)
        return Mesh((self.vertices - centre) / radius, self.triangles)

    def turned(self, matrix: Sequence[Sequence[float]]) -> Mesh:
        """Every vertex multiplied by a matrix ``[3, 3]``."""
        return Mesh(self.vertices @ torch.tensor(matrix, dtype=torch.float32).T, self.triangles)


def load(path: Path) -> Mesh:
    """A mesh from a file; polygons become fans of triangles.

    Raises:
        ValueError: The file is none of the three formats, or breaks its own.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected one of {', '.join(READERS)}, got {path.suffix!r}.")
    vertices, triangles = reader(path)
    if not triangles:
        raise ValueError(f"{path}: expected at least one face, got none.")
    places = np.asarray(vertices, dtype=np.float64)
    if strange := np.flatnonzero(~(np.abs(places) <= FARTHEST).all(1)).tolist():
        raise ValueError(
            f"{path}: vertex {strange[0] + 1} must be three finite numbers up to {FARTHEST:g}, "
            f"got {places[strange[0]].tolist()}."
        )
    corners = torch.tensor(triangles)
    if not len(vertices) > int(corners.max()) or int(corners.min()) < 0:
        raise ValueError(
            f"{path}: expected faces of the {len(vertices)} vertices, got one with vertex "
            f"{int(corners.max()) + 1}."
        )
    return Mesh(torch.as_tensor(places.astype(np.float32)), corners)


Parts = tuple[Sequence[Sequence[float]] | np.ndarray, list[tuple[int, int, int]]]


def _obj(path: Path) -> Parts:
    """Wavefront: ``v x y z`` and ``f 1/1/1 2//2 3``; numbers count from one, negative ones backwards.

    Real files have faces of two corners; like lines and points they are no surface.
    """
    vertices: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    for number, words in _lines(path):
        if words[0] == "v":
            vertices.append(_floats(path, number, words[1:], 3))
        elif words[0] == "f":
            corners = [_int(path, number, word.split("/")[0]) for word in words[1:]]
            if any(not 0 < abs(c) <= len(vertices) for c in corners):
                raise _error(
                    path, number, f"vertices among the {len(vertices)} above", " ".join(words)
                )
            triangles += _fan([c - 1 if c > 0 else len(vertices) + c for c in corners])
    return vertices, triangles


def _off(path: Path) -> Parts:
    """Object file format: ``OFF``, the counts (perhaps on the same line), vertices, faces."""
    lines = _lines(path)
    number, words = _next(path, lines, "the word OFF")
    if not words[0].upper().endswith("OFF") or "BINARY" in map(str.upper, words):
        raise _error(path, number, "the word OFF, then text", " ".join(words))
    if len(words) == 1:
        number, words = _next(path, lines, "counts of vertices, faces and edges")
        words = ["OFF", *words]
    if len(words) < 3:
        raise _error(path, number, "counts of vertices and faces", " ".join(words))
    n_vertices, n_faces = (_int(path, number, word) for word in words[1:3])
    vertices = []
    for i in range(n_vertices):
        number, words = _next(path, lines, f"vertex {i + 1} of {n_vertices}")
        vertices.append(_floats(path, number, words, 3))
    triangles = []
    for i in range(n_faces):
        number, words = _next(path, lines, f"face {i + 1} of {n_faces}")
        count = _int(path, number, words[0])
        corners = [_int(path, number, word) for word in words[1 : 1 + count]]
        if len(corners) != count or any(not 0 <= c < n_vertices for c in corners):
            expected = f"a count and so many vertices of 0..{n_vertices - 1}"
            raise _error(path, number, expected, " ".join(words))
        triangles += _fan(corners)
    return vertices, triangles


def _stl(path: Path) -> Parts:
    """Stereolithography, in bytes where the size fits them, else in words."""
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        record = np.dtype([("floats", "<f4", (4, 3)), ("attribute", "<u2")])
        corners = np.frombuffer(data, record, offset=84)["floats"][:, 1:]
    elif data[:5] == b"solid":
        words = [(n, w) for n, w in _lines(path) if w[0] == "vertex"]
        rows = [_floats(path, n, w[1:], 3) for n, w in words]
        if len(rows) % 3:
            raise _error(path, words[-1][0], "3 vertices a facet", f"{len(rows)} in all")
        corners = np.array(rows, dtype=np.float32)
    else:
        raise ValueError(
            f"{path}: expected an STL file, either text that begins with 'solid' or 84 bytes and 50 for "
            f"each triangle, got {len(data)} bytes for {count} triangles. It may be cut short."
        )
    vertices = corners.reshape(-1, 3)
    return vertices, [(i, i + 1, i + 2) for i in range(0, len(vertices), 3)]


READERS: Mapping[str, Callable[[Path], Parts]] = {".off": _off, ".obj": _obj, ".stl": _stl}
"""By the end of the file's name."""


def _fan(corners: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(corners[0], a, b) for a, b in pairwise(corners[1:])]


def _lines(path: Path) -> Iterator[Line]:
    """Lines with words on them, without comments."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            words = line.partition("#")[0].split()
            if words:
                yield number, words


def _next(path: Path, lines: Iterator[Line], expected: str) -> Line:
    found = next(lines, None)
    if found is None:
        raise ValueError(f"{path}: expected {expected}, got the end of the file.")
    return found


def _floats(path: Path, number: int, words: list[str], count: int) -> list[float]:
    try:
        found = [float(word) for word in words[:count]]
    except ValueError:
        found = []
    if len(found) < count:
        raise _error(path, number, f"{count} numbers", " ".join(words))
    return found


def _int(path: Path, number: int, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise _error(path, number, "a whole number", word) from None


def _error(path: Path, number: int, expected: str, got: str) -> ValueError:
    return ValueError(f"{path}, line {number}: expected {expected}, got {got!r}.")
