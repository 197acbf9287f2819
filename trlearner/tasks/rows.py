"""What adaptation made of several tasks, kept one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from trlearner.base.types import Fast


class Rows(Mapping[str, Tensor]):
    """One dict for each task; an entry ``[tasks, ...]`` is stacked when it is asked for.

    To stack copies every parameter, and its gradient on the way back: a tenth of a step where there are
    millions. Engines that take models one by one need no stack.

    Example:
        >>> fast = Rows([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])
        >>> fast["w"]
        tensor([[0., 0.],
                [1., 1.]])
    """

    def __init__(self, tasks: Iterable[Fast]) -> None:
        self.tasks = list(tasks)

    def __getitem__(self, name: str) -> Tensor:
        return torch.stack([task[name] for task in self.tasks])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks[0])

    def __len__(self) -> int:
        return len(self.tasks[0])


def number(fast: Fast) -> int:
    """Of the tasks."""
    return len(fast.tasks) if isinstance(fast, Rows) else len(next(iter(fast.values())))


def part_of(fast: Fast, part: slice | Tensor) -> Fast:
    """Some of the tasks: a slice, or their positions ``[some]``."""
    if not isinstance(fast, Rows):
        return {name: values[part] for name, values in fast.items()}
    return Rows(
        fast.tasks[part] if isinstance(part, slice) else [fast.tasks[i] for i in part.tolist()]
    )


def unbound(fast: Fast) -> list[Fast]:
    """One dict for each task."""
    if isinstance(fast, Rows):
        return fast.tasks
    # Not one by one: the way back of `values[j]` fills a tensor of all models' size for each of them.
    rows = zip(*(values.unbind() for values in fast.values()), strict=True)
    return [dict(zip(fast, row, strict=True)) for row in rows]
