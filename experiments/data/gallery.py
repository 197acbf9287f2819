"""`Gallery`: the images of many classes in one array, class by class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Kind(NamedTuple):
    """A class of images.

    Attributes:
        name: Says what it is; unique in a gallery.
        group: Classes that belong together, e.g. the letters of one alphabet.
        size: How many images it has.
    """

    name: str
    group: str
    size: int


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images of some classes; those of a class lie next to each other.

    Args:
        images: uint8 ``[images, channels, height, width]``, in memory, in a file or on a device.
        kinds: The classes.
        starts: ``[classes]``, where the images of each begin.
        turns: 4 where an image turned by 90, 180 or 270 degrees is of another class, else 1.

    Example:
        >>> kinds = [Kind("a", "latin", 20), Kind("b", "latin", 30)]
        >>> gallery = Gallery.of(torch.zeros(50, 1, 28, 28, dtype=torch.uint8), kinds)
        >>> len(gallery), gallery[[1]].starts
        (2, tensor([20]))
    """

    images: Tensor
    kinds: tuple[Kind, ...]
    starts: Tensor
    turns: int = 1

    @classmethod
    def of(cls, images: Tensor, kinds: Sequence[Kind]) -> Gallery:
        """All images of an array, the classes in its order."""
        counts = torch.tensor([kind.size for kind in kinds])
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != int(counts.sum()):
            raise ValueError(
                f"images must be uint8 [images, channels, height, width] with {int(counts.sum())} "
                f"images, as the classes' sizes say, got {images.dtype} {list(images.shape)}."
            )
        return cls(images, tuple(kinds), counts.cumsum(0) - counts)

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def counts(self) -> Tensor:
        """How many images each class has: ``[classes]``."""
        return torch.tensor([kind.size for kind in self.kinds])

    def __getitem__(self, classes: Sequence[int]) -> Gallery:
        """Some of the classes; the images stay where they are."""
        kinds = tuple(self.kinds[i] for i in classes)
        return replace(self, kinds=kinds, starts=self.starts[list(classes)])

    def where(self, chosen: Callable[[Kind], bool]) -> Gallery:
        """The classes of which `chosen` is true."""
        return self[[i for i, kind in enumerate(self.kinds) if chosen(kind)]]

    def first(self, images: int) -> Gallery:
        """At most so many images of each class, the first ones."""
        kinds = tuple(kind._replace(size=min(kind.size, images)) for kind in self.kinds)
        return replace(self, kinds=kinds)

    def turned(self) -> Gallery:
        """The same where a turned image is of another class."""
        if self.images.shape[-1] != self.images.shape[-2]:
            raise ValueError(f"only square images can turn, got {list(self.images.shape[-2:])}.")
        return replace(self, turns=4)

    def split(self, by: str, shares: Mapping[str, float]) -> dict[str, Gallery]:
        """Galleries that have no class, or no group, in common.

        Where one falls follows from the names alone: they are put in the order of their hashes, and
        that row is cut.

        Args:
            by: ``"name"``, or ``"group"`` to keep groups together.
            shares: The share that each split gets of the names or groups, in proportion.
        """
        groups = [getattr(kind, by) for kind in self.kinds]
        row = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).digest())
        splits, done, total = {}, 0.0, sum(shares.values())
        for name, share in shares.items():
            begin, end = (round(len(row) * part / total) for part in (done, done + share))
            chosen, done = set(row[begin:end]), done + share
            splits[name] = self.where(lambda kind, chosen=chosen: getattr(kind, by) in chosen)
        return splits
