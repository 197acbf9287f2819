"""N-way K-shot tasks from a gallery, a whole meta-batch in one gather.

Random numbers come from the generator alone, on its own device; the images are gathered where they lie
and turned into numbers in [0, 1] on the device of the tasks. Nothing else is done to them: a first layer
with BatchNorm undoes any standardization by channel, up to the padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from trlearner.experiments.data.gallery import Gallery

import trlearner as tr


@dataclass(frozen=True, eq=False)
class Episodes:
    """Tasks of `ways` classes, none of them twice in a task, renamed to labels ``0..ways-1``.

    Support and query take turns through the classes: samples ``k * ways`` to ``(k + 1) * ways - 1`` hold
    one image of each, in the order of the labels. No image is in both. A task's id is the tuple of its
    classes' names, with ``@90``, ``@180`` or ``@270`` where all images of a class are turned.

    Args:
        splits: The classes to draw from, by split. All images are brought to the form of the first's.
        shots: Support images of each class.
        queries: Query images of each class.
        ways: Classes of a task.
        tasks: So many fixed tasks (classes, turns and labels) make up the split ``train``.
        device: Where tasks are to be.

    Raises:
        ValueError: A split has too few classes, or a class too few images.

    Example:
        >>> from trlearner.experiments.data.gallery import Kind
        >>> kinds = [Kind(name, "", 20) for name in "abcdefgh"]
        >>> gallery = Gallery.of(torch.zeros(160, 1, 28, 28, dtype=torch.uint8), kinds)
        >>> episodes = Episodes({"train": gallery}, shots=1, queries=15, ways=5)
        >>> batch = episodes.sample("train", 4, torch.Generator().manual_seed(0))
        >>> batch.support.x.shape, batch.query.y.shape
        (torch.Size([4, 5, 1, 28, 28]), torch.Size([4, 75]))
    """

    splits: Mapping[str, Gallery]
    shots: int
    queries: int
    ways: int = 5
    tasks: int | None = None
    device: str = "cpu"
    fixed: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for name, gallery in self.splits.items():
            _check(name, gallery, self.ways, self.shots, self.queries)
        if self.tasks is not None:
            generator = torch.Generator().manual_seed(0)
            fixed = _classes(self.splits["train"], self.tasks, self.ways, generator)
            object.__setattr__(self, "fixed", fixed)

    @property
    def shape(self) -> torch.Size:
        """Of one image: channels, height, width."""
        return next(iter(self.splits.values())).images.shape[1:]

    def sample(self, split: str, n_tasks: int, generator: torch.Generator) -> tr.TaskBatch:
        """Tasks of a split, the same ones for the same state of the generator."""
        if split not in self.splits:
            raise ValueError(f"there is no split {split!r}, only {sorted(self.splits)}.")
        gallery = self.splits[split]
        classes, turns = self._tasks(split, n_tasks, generator)
        starts, counts = (t.to(classes.device)[classes] for t in (gallery.starts, gallery.counts))
        chosen = starts[..., None] + _distinct(counts, self.shots + self.queries, generator)
        x = self._images(gallery, chosen.transpose(1, 2), turns)
        y = torch.arange(self.ways, device=x.device).repeat(n_tasks, self.shots + self.queries)
        cut = self.shots * self.ways
        return tr.TaskBatch(
            support=(x[:, :cut], y[:, :cut]),
            query=(x[:, cut:], y[:, cut:]),
            ids=_names(gallery, classes, turns),
            ways=self.ways,
        )

    def _tasks(self, split: str, n_tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The classes of new tasks and their quarter turns: ``[tasks, ways]`` each."""
        if split != "train" or self.fixed is None:
            return _classes(self.splits[split], n_tasks, self.ways, generator)
        classes, turns = (t.to(generator.device) for t in self.fixed)
        if n_tasks > len(classes):
            raise ValueError(
                f"{n_tasks} tasks were asked for, but there are {len(classes)} to train on. Ask for "
                "at most as many, or fix more (train_tasks)."
            )
        some = _distinct(torch.tensor(len(classes), device=generator.device), n_tasks, generator)
        return classes[some], turns[some]

    def _images(self, gallery: Gallery, index: Tensor, turns: Tensor) -> Tensor:
        """Images ``[tasks, samples, ...]`` by their numbers ``[tasks, rounds, ways]``."""
        images = gallery.images[index.to(gallery.images.device)].to(self.device)
        if gallery.turns > 1:
            turns = turns.to(self.device)[:, None, :, None, None, None]
            for k in range(1, gallery.turns):
                images = torch.where(turns == k, images.rot90(k, (-2, -1)), images)
        return _fit(images.flatten(1, 2).float().div_(255), self.shape)


def _distinct(counts: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """So many different numbers below each count: ``[...]`` to ``[..., size]``."""
    longest = torch.arange(int(counts.max()), device=counts.device)
    rank = torch.rand(*counts.shape, len(longest), generator=generator, device=generator.device)
    return rank.masked_fill(longest >= counts[..., None], 2.0).argsort(-1)[..., :size]


def _classes(
    gallery: Gallery, n_tasks: int, ways: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    device = generator.device
    classes = _distinct(torch.full((n_tasks,), len(gallery), device=device), ways, generator)
    turns = torch.randint(gallery.turns, classes.shape, generator=generator, device=device)
    return classes, turns


def _names(gallery: Gallery, classes: Tensor, turns: Tensor) -> list[tuple[str, ...]]:
    ends = ("", "@90", "@180", "@270")
    rows = zip(classes.tolist(), turns.tolist(), strict=True)
    return [
        tuple(gallery.kinds[i].name + ends[k] for i, k in zip(*row, strict=True)) for row in rows
    ]


def _fit(images: Tensor, shape: torch.Size) -> Tensor:
    """Images ``[tasks, samples, channels, height, width]`` of another size, in color or without."""
    if images.shape[2] != shape[0]:
        images = images.mean(2, keepdim=True).expand(-1, -1, shape[0], -1, -1)
    if images.shape[3:] != shape[1:]:
        flat = images.flatten(0, 1)
        flat = F.interpolate(flat, tuple(shape[1:]), mode="bilinear", antialias=True)
        images = flat.unflatten(0, images.shape[:2])
    return images.contiguous()


def _check(name: str, gallery: Gallery, ways: int, shots: int, queries: int) -> None:
    if len(gallery) < ways:
        raise ValueError(
            f"the split {name!r} has {len(gallery)} classes, fewer than ways={ways}. Lower ways."
        )
    poor = min(gallery.kinds, key=lambda kind: kind.size)
    if poor.size < shots + queries:
        raise ValueError(
            f"shots={shots} and queries={queries} need {shots + queries} images of each class, but "
            f"{poor.name!r} in the split {name!r} has {poor.size}. Lower one of them."
        )
