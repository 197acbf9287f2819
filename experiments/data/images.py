"""Image classification: the problems, each N ways with K shots from a gallery of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trlearner.experiments.data import folder, glyphs, grocery, omniglot
from trlearner.experiments.data.episodes import Episodes
from trlearner.experiments.data.gallery import Gallery
from trlearner.experiments.data.models.conv4 import Conv4
from trlearner.experiments.data.models.resnet12 import ResNet12
from trlearner.experiments.data.problem import Builder, Metric, Problem, Request
from trlearner.experiments.data.setting import Range, option

import trlearner as tr


@dataclass(frozen=True)
class Images:
    """Where the images of a problem come from.

    Attributes:
        load: Makes a gallery for each split.
        options: Those that `load` knows.
    """

    load: Callable[[Request], dict[str, Gallery]]
    options: tuple[str, ...]


IMAGES = {
    "images/omniglot": Images(omniglot.by_character, ("rotations",)),
    "images/omniglot-alphabets": Images(omniglot.by_alphabet, ("rotations",)),
    "images/glyphs": Images(glyphs.by_character, ("drawings",)),
    "images/grocery": Images(grocery.by_coarse_class, ("size", "channels")),
    "images/folder": Images(folder.by_list, ("folder", "size", "channels")),
}
COMMON = ("network", "filters", "widths", "shifted", "shifted_options", "on_host")


def problem(name: str, request: Request) -> Problem:
    """The problem of a name.

    Args:
        name: One of `IMAGES`.
        request: With `train_tasks`, training tasks are that many fixed choices of classes; with `pool`,
            only the first so many images of each training class are used. Options besides the problem's
            own: ``network`` (``"conv4"`` with ``filters``, or ``"resnet12"`` with ``widths``);
            ``shifted``, the name of another problem whose test split becomes the shifted one here, its
            images brought to this one's size and channels, and ``shifted_options`` for it; ``on_host``,
            to leave the images in main memory where the tasks are on a GPU.
    """
    _check_options(name, request.options, (*IMAGES[name].options, *COMMON))
    splits = IMAGES[name].load(request)
    if "shifted" in request.options:
        splits["shifted"] = _other(request)
    if request.pool is not None:
        splits["train"] = _pool(splits["train"], request)
    source = Episodes(
        splits
        if option(request.options, "on_host", False, bool)
        else _moved(splits, request.device),
        request.shots,
        request.queries,
        request.ways,
        request.train_tasks,
        request.device,
    )
    return Problem(
        source=source,
        network=partial(network, request, source.shape),
        head="head",
        features=lambda net: net.features,
        loss_fn=cross_entropy,
        metrics=(Metric("accuracy", "higher", accuracy),),
        encoder="input",
        align="sinkhorn",
    )


def network(request: Request, shape: torch.Size) -> nn.Module:
    """The network that the options name, for images of this shape."""
    channels, height, _ = shape
    options, width = request.options, Range(1, 4096)
    kind = option(options, "network", "conv4", Literal["conv4", "resnet12"])
    filters = option(options, "filters", 32, int, width)
    widths = option(options, "widths", (64, 160, 320, 640), tuple[int, ...], width)
    if kind == "conv4":
        return Conv4(request.ways, channels, height, filters)
    return ResNet12(request.ways, channels, widths)


def accuracy(predictions: Tensor, query: tr.Samples) -> Tensor:
    """The share of each task's real queries whose class has the largest logit: ``[tasks]``."""
    right = (predictions.argmax(-1) == query.y).float()
    real = torch.ones_like(right) if query.mask is None else query.mask.float()
    return (right * real).sum(1) / real.sum(1)


def _other(request: Request) -> Gallery:
    """The test split of another problem."""
    name = request.options["shifted"]
    if name not in IMAGES:
        raise ValueError(f"shifted must be one of {', '.join(IMAGES)}, got {name!r}.")
    options = request.options.get("shifted_options", {})
    _check_options(name, options, IMAGES[name].options)
    return IMAGES[name].load(replace(request, options=options))["test"]


def _pool(gallery: Gallery, request: Request) -> Gallery:
    """The first images of each class."""
    need = request.shots + request.queries
    if request.pool < need:
        raise ValueError(
            f"pool must hold the {request.shots} support and {request.queries} query images of each "
            f"class, {need} in all, got {request.pool}."
        )
    return gallery.first(request.pool)


def _moved(splits: Mapping[str, Gallery], device: str) -> dict[str, Gallery]:
    """The galleries on a device, images that several share there once."""
    moved: dict[int, Tensor] = {}
    for gallery in splits.values():
        if id(gallery.images) not in moved:
            moved[id(gallery.images)] = gallery.images.to(device)
    return {
        name: replace(gallery, images=moved[id(gallery.images)]) for name, gallery in splits.items()
    }


def _check_options(name: str, options: Mapping[str, object], known: tuple[str, ...]) -> None:
    strange = sorted(set(options) - set(known))
    if strange:
        raise ValueError(
            f"{name} does not know the options {strange}; it knows {', '.join(known)}."
        )


PROBLEMS: Mapping[str, Builder] = {name: partial(problem, name) for name in IMAGES}
