"""How far an object is turned, from a few views of it: pose regression after Yin et al. 2020.

A task is one object, seen from random sides, grey, 128 x 128; the target is its azimuth as a part of a
full turn, times ten (arXiv 1912.03820 and ``pose_code``: `y_train[:, :, -1, None] * 10` of angle / 2 pi),
relative to a canonical pose that only the task's own samples can tell. As there, the canonical pose of an
object is fixed, so that a network may learn those of the training objects by heart: what TRLearner,
like the paper's regularizer, has to prevent. Published sizes: 50 objects to train, 15 to test, 100
views of each; 10 or 15 shots, as many queries.

Options of a request (`options`):
    canonical: ``"object"`` turns every object's zero by a random angle of its own (the published one is
        the mesh's own front, which objects of a category share); ``"file"`` is that; ``"task"`` draws
        another zero for every task, so that nothing can be learnt by heart.
    size, views: Of a picture, in pixels, a multiple of 16; how many of an object.
    filters: Of the network; 16 and size 64 make it five times as fast on a CPU.
    folder: Read these meshes, or pickles, instead of those in the data folder.
    up: The upward axis of the meshes, ``"y"`` or ``"z"``.
    distinct: Leave out meshes whose sides look more alike than this (`views.distinctness`).
    shifted: The categories of meshes that are kept for the split ``shifted``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trlearner.experiments.data import shapes, views
from trlearner.experiments.data.cache import fingerprint
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.models.pose import pose_network
from trlearner.experiments.data.objects import found, invented
from trlearner.experiments.data.pickled import load_arrays
from trlearner.experiments.data.problem import Builder, MissingData, Problem, Request, need
from trlearner.experiments.data.regression import MSE
from trlearner.experiments.data.setting import Range, option
from trlearner.experiments.data.turntable import Turns, Turntable

DISTINCT = 0.21
"""Buses, fridges and closed cupboards lie below; cars (0.23), desks and all else above."""


def procedural(request: Request) -> Problem:
    """Objects out of `shapes`: 50 to train, 15 for validation, 30 to test, 30 of other families."""
    options = _options(request, "views", "size")
    known = [name for name in shapes.FAMILIES if name not in shapes.SHIFTED]
    counts = {"train": max(50, request.train_tasks or 0), "validation": 15, "test": 30}
    things = {
        name: invented(known, count, 100_000 * i) for i, (name, count) in enumerate(counts.items())
    }
    things["shifted"] = invented(shapes.SHIFTED, 30, 300_000)
    size, count = _size(options), _views(options)
    everything = [thing for part in things.values() for thing in part]
    gallery = views.gallery("pose-procedural", everything, None, count, size)
    splits, done = {}, 0
    for name, part in things.items():
        splits[name], done = gallery[range(done, done + len(part))], done + len(part)
    return _problem(splits, _azimuths(gallery), request, options, "object")


def meshes(request: Request) -> Problem:
    """Objects of a folder: 10 % for validation, 20 % to test, two categories kept for `shifted`."""
    options = _options(request, "views", "size", "folder", "up", "distinct", "shifted")
    folder = _folder(
        request,
        "sweethome3d",
        "The folder of 199 meshes (.obj)",
        "the Debian package sweethome3d-furniture, or give any folder of .off, .obj or .stl files as "
        "options folder",
    )
    up = option(options, "up", "y", Literal["y", "z"])
    least = option(options, "distinct", DISTINCT, float, Range(0, 1))
    things = found(folder, up)
    index = folder / "index.csv"
    files = [folder / thing.name for thing in things] + [index] * index.exists()
    contents = [fingerprint(files), up]
    things = views.distinct("pose-distinct", things, contents, least)
    if not things:
        raise ValueError(f"{folder}: all objects look alike from different sides; lower distinct.")
    size, count = _size(options), _views(options)
    gallery = views.gallery("pose-meshes", things, contents, count, size)
    kept = options.get("shifted", ["Vehicles", "Characters"])
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    splits = gallery.where(lambda kind: kind.group not in kept).split("name", shares)
    if not all(len(part) for part in splits.values()):
        raise ValueError(
            f"{folder} must hold at least 10 objects to train, validate and test, "
            f"got {sum(map(len, splits.values()))} that are distinct and not of {kept}."
        )
    splits["shifted"] = gallery.where(lambda kind: kind.group in kept)
    return _problem(splits, _azimuths(gallery), request, options, "object")


def pickles(request: Request) -> Problem:
    """The pictures of Yin et al.; the last tenth of their training objects are for validation.

    A pickle holds ``[images, labels]``: uint8 ``[objects, views, 128, 128]``, and as the last of
    ``[objects, views, 3]`` the azimuth in parts of a full turn.
    """
    options = _options(request, "folder")
    folder = _folder(
        request,
        "pascal3d",
        "The pickled Pascal3D views (train_data_ins.pkl, val_data_ins.pkl)",
        "github.com/google-research/google-research/tree/master/meta_learning_without_memorization, "
        "whose pose_data renders them",
    )
    gallery, turns = _published(folder)
    train, test = (gallery.where(lambda kind, g=g: kind.group == g) for g in ("train", "val"))
    cut = len(train) - max(1, len(train) // 10)
    splits = {"train": train[range(cut)], "validation": train[range(cut, len(train))], "test": test}
    size = gallery.images.shape[-1]
    return _problem(splits, turns, request, {**options, "size": size}, "file")


def _published(folder: Path) -> tuple[Gallery, Turns]:
    kinds: list[Kind] = []
    images: list[Tensor] = []
    turns: dict[str, Tensor] = {}
    for part in ("train", "val"):
        names = [f"{part}_data_ins.pkl", f"{part}_data.pkl"]
        path = next((folder / name for name in names if (folder / name).exists()), None)
        if path is None:
            raise MissingData(f"{folder} must hold {names[0]} or {names[1]}, got neither.")
        loaded = load_arrays(path)
        if not isinstance(loaded, list | tuple) or len(loaded) != 2:
            raise ValueError(
                f"{path} must be a pair (images, labels), got {type(loaded).__name__}."
            )
        try:
            x, y = np.array(loaded[0], np.uint8), np.array(loaded[1], np.float64)
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} must hold bytes and numbers: {error}.") from None
        shapes = x.ndim >= 4 and y.ndim == 3 and x.shape[:2] == y.shape[:2]
        if not shapes or not np.isfinite(y).all():
            raise ValueError(
                f"{path} must hold images [objects, views, 128, 128] and labels [objects, views, 3], "
                f"got {list(x.shape)} and {list(y.shape)}."
            )
        x = x.reshape(len(x), x.shape[1], 1, x.shape[2], x.shape[3])
        images.append(torch.from_numpy(x).flatten(0, 1))
        kinds += [Kind(f"{part} {i}", part, x.shape[1]) for i in range(len(x))]
        turns |= {f"{part} {i}": torch.from_numpy(row) for i, row in enumerate(y[:, :, -1])}
    return Gallery.of(torch.cat(images), kinds), turns


def _problem(
    splits: Mapping[str, Gallery],
    turns: Turns,
    request: Request,
    options: Mapping[str, Any],
    canonical: str,
) -> Problem:
    size, filters = _size(options), option(options, "filters", 64, int, Range(1, 4096))
    return Problem(
        source=Turntable(splits, turns, request, options.get("canonical", canonical)),
        network=partial(pose_network, size, filters),
        head="head",
        features=_features,
        loss_fn=mse_loss,
        metrics=(MSE,),
    )


def _features(network: nn.Module) -> nn.Module:
    return network.get_submodule("features")


def _azimuths(gallery: Gallery) -> Turns:
    """As the pictures were made."""
    return {k.name: views.angles(k.name, k.size)[0] / (2 * torch.pi) for k in gallery.kinds}


def _options(request: Request, *names: str) -> Mapping[str, Any]:
    known = {"canonical", "filters", *names}
    if strange := sorted(set(request.options) - known):
        raise ValueError(f"options must be among {', '.join(sorted(known))}, got {strange}.")
    return request.options


def _size(options: Mapping[str, Any]) -> int:
    return option(options, "size", 128, int, Range(8, 1024))


def _views(options: Mapping[str, Any]) -> int:
    return option(options, "views", 100, int, Range(2, 10_000))


def _folder(request: Request, name: str, what: str, where: str) -> Path:
    """The folder that the options name, or the one of this problem in the data folder."""
    if "folder" not in request.options:
        return need(request, f"pose/{name}", what, where, "pose/procedural")
    folder = Path(request.options["folder"])
    if not folder.is_dir():
        raise MissingData(f"options folder must be a folder, got {folder}, which is none.")
    return folder


PROBLEMS: Mapping[str, Builder] = {
    "pose/procedural": procedural,
    "pose/meshes": meshes,
    "pose/pickles": pickles,
}
