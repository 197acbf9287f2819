"""`Turntable`: objects seen from random sides; a task is to tell how far one is turned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from trlearner.experiments.data.gallery import Gallery
from trlearner.experiments.data.problem import Request, Split

import trlearner as tr

SCALE = 10.0
"""A full turn, in the published labels."""

Turns = Mapping[str, Tensor]
"""The azimuth of an object's views in parts of a full turn, ``[views]``, by its name."""


class Turntable:
    """A source of objects seen from random sides.

    Args:
        splits: The objects of each split.
        turns: Their azimuths.
        request: Shots, queries, number of training objects, and how many of their views (`pool`).
        canonical: ``"file"``, ``"object"`` or ``"task"``.
    """

    def __init__(
        self, splits: Mapping[str, Gallery], turns: Turns, request: Request, canonical: str
    ) -> None:
        if canonical not in ("file", "object", "task"):
            raise ValueError(f"canonical must be file, object or task, got {canonical!r}.")
        self.shots, self.samples = request.shots, request.shots + request.queries
        self.canonical, self.device = canonical, torch.device(request.device)
        self.splits = {name: part for name, part in splits.items() if len(part)}
        train = self.splits["train"]
        if request.train_tasks is not None:
            if request.train_tasks > len(train):
                raise ValueError(
                    f"train_tasks must be at most the {len(train)} training objects, "
                    f"got {request.train_tasks}."
                )
            train = train[range(request.train_tasks)]
        self.splits["train"] = train if request.pool is None else train.first(request.pool)
        self.images = train.images.to(self.device)
        self.turns = {name: self._turns(part, turns) for name, part in self.splits.items()}

    def sample(self, split: Split, n_tasks: int, generator: torch.Generator) -> tr.TaskBatch:
        """Tasks of a split: no object twice before all have had a turn, no view twice in a task."""
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}, got {split!r}.")
        part = self.splits[split]
        rounds = -(-n_tasks // len(part))
        place: dict[str, Any] = {"generator": generator, "device": generator.device}
        order = [torch.randperm(len(part), **place) for _ in range(rounds)]
        return self._draw(split, torch.cat(order)[:n_tasks].cpu(), generator)

    @property
    def names(self) -> list[str]:
        """Of the training objects."""
        return [kind.name for kind in self.splits["train"].kinds]

    def pick(self, names: Sequence[str], generator: torch.Generator) -> tr.TaskBatch:
        """These training objects."""
        number = {name: i for i, name in enumerate(self.names)}
        return self._draw("train", torch.tensor([number[name] for name in names]), generator)

    def _draw(self, split: Split, chosen: Tensor, generator: torch.Generator) -> tr.TaskBatch:
        """Views of the chosen objects."""
        part, turns = self.splits[split], self.turns[split]
        place: dict[str, Any] = {"generator": generator, "device": generator.device}
        rows = torch.rand(len(chosen), turns.shape[1], **place).argsort(1)
        seen = rows[:, : self.samples].cpu()
        turn = turns[chosen[:, None], seen]
        if self.canonical == "task":
            turn = (turn + torch.rand(len(chosen), 1, **place).cpu()) % 1
        x = self.images[(part.starts[chosen, None] + seen).to(self.device)].float() / 255
        y = (SCALE * turn[..., None]).float().to(self.device)
        k = self.shots
        return tr.TaskBatch(
            support=(x[:, :k], y[:, :k]),
            query=(x[:, k:], y[:, k:]),
            ids=tuple(part.kinds[i].name for i in chosen.tolist()),
        )

    def _turns(self, part: Gallery, turns: Turns) -> Tensor:
        """``[objects, views]``, from each object's own zero."""
        least = int(part.counts.min())
        if least < self.samples:
            raise ValueError(
                f"an object must have {self.samples} views for {self.shots} shots and "
                f"{self.samples - self.shots} queries, got {least}. Ask for fewer, or raise pool or views."
            )
        zeros = [_zero(kind.name) if self.canonical == "object" else 0.0 for kind in part.kinds]
        found = torch.stack([turns[kind.name][:least] for kind in part.kinds])
        return (found + torch.tensor(zeros, dtype=found.dtype)[:, None]) % 1


def _zero(name: str) -> float:
    """A random part of a turn, always the same for an object."""
    digest = hashlib.sha256(f"zero of {name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
