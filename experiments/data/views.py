"""Pictures of objects from all around, made once and kept in the cache."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trlearner.experiments.data import mesh, render, shapes, solids
from trlearner.experiments.data.arrays import stored
from trlearner.experiments.data.cache import Draft, cached, fingerprint
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.objects import Thing
from trlearner.experiments.data.progress import span

CODE = [Path(str(module.__file__)) for module in (mesh, render, shapes, solids)]
"""What pictures depend on besides the objects; when it changes, they are made anew."""

ELEVATION = math.radians(20), math.radians(40)
"""The camera's height above the horizon is drawn between these."""


def angles(name: str, views: int) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation of each view of an object, the same ones for the same name: ``[views]``."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    # Two rows of one draw: the first views are the same however many there are.
    azimuth, elevation = torch.rand(views, 2, generator=generator, dtype=torch.float64).T
    low, high = ELEVATION
    return 2 * math.pi * azimuth, low + (high - low) * elevation


def gallery(name: str, things: Sequence[Thing], depends_on: Any, views: int, size: int) -> Gallery:
    """The views of all objects, a class each; interrupted, it leaves nothing behind.

    Args:
        name: Begins the file's name in the cache.
        things: The objects.
        depends_on: Their contents, as JSON takes it.
        views: Pictures of each, at its `angles`.
        size: Of a picture, in pixels.
    """

    def blocks() -> Iterator[np.ndarray]:
        start = time.perf_counter()
        for done, thing in enumerate(things):
            pictures = render.render(thing.mesh(), *angles(thing.name, views), size)
            yield (pictures * 255).round().byte()[:, None].numpy()
            _tell(done + 1, len(things), time.perf_counter() - start)

    names = [(thing.name, thing.group) for thing in things]
    key = {
        "objects": [names, depends_on],
        "code": fingerprint([*CODE, Path(__file__)]),
        "views": views,
        "size": size,
    }
    kinds = [Kind(*each, views) for each in names]
    return cached(name, key, lambda: Draft(kinds, (1, size, size), blocks()))


def distinct(name: str, things: Sequence[Thing], depends_on: Any, least: float) -> list[Thing]:
    """Those that do not look alike from different sides; see `distinctness`."""
    if least <= 0:
        return list(things)

    def make() -> dict[str, np.ndarray]:
        print(f"Looking at {len(things)} objects from all sides...", file=sys.stderr, flush=True)
        return {"distinctness": np.array([distinctness(thing.mesh()) for thing in things])}

    key = [[thing.name for thing in things], depends_on, fingerprint([*CODE, Path(__file__)])]
    scores = stored(name, key, make)["distinctness"]
    return [thing for thing, score in zip(things, scores, strict=True) if score >= least]


def distinctness(surface: mesh.Mesh, views: int = 24, size: int = 48) -> float:
    """How little the sides of an object resemble each other: 0 for a cylinder, about 0.4 for a chair.

    Of views at equal distances, each is compared with all that are 45 degrees or more away, and keeps
    the least difference ``sum |a - b| / sum max(a, b)``; this is the mean over views.
    """
    azimuth = torch.arange(views) * (2 * math.pi / views)
    seen = render.render(surface, azimuth, torch.full((views,), math.radians(30)), size).flatten(1)
    a, b = seen[:, None], seen[None]
    difference = (a - b).abs().sum(2) / torch.maximum(a, b).sum(2).clamp_min(1e-6)
    away = (azimuth[:, None] - azimuth[None]).cos() < math.cos(math.radians(44.9))
    return float(difference.masked_fill(~away, math.inf).amin(1).mean())


def _tell(done: int, total: int, seconds: float) -> None:
    """A line that is written over in a terminal, ten lines elsewhere."""
    text = f"Rendering: {done}/{total} objects, {span(seconds / done * (total - done))} left"
    if sys.stderr.isatty():
        print(f"\r{text} ", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done % math.ceil(total / 10) == 0 or done == total:
        print(text, file=sys.stderr, flush=True)
