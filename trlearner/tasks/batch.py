"""`TaskBatch`: the tasks of a meta-batch, support and query paired."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trlearner.base.checks import check_instance, shown
from trlearner.tasks.nested import as_data, joined, leaves, same_parts, sizes_after
from trlearner.tasks.nested import shown as shape_of
from trlearner.tasks.samples import Pair, Samples, check_together, samples_of, task_index


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """A meta-batch: the support and query samples of several tasks.

    Args:
        support: ``(x, y)`` or `Samples`, ``[tasks, samples, ...]``: what a learner adapts on.
        query: ``(x, y)`` or `Samples`, ``[tasks, queries, ...]``: what it is judged on.
        ids: One hashable name a task, for samplers and monitors.
        ways: The number of classes of every task, for integer targets; static, so that it is
            never read off the data.

    Raises:
        ValueError: Sizes disagree, a task is empty, or a label is outside of ``range(ways)``.
        TypeError: Something that should be a tensor is none.

    Example:
        >>> x, y = torch.zeros(4, 5, 1), torch.zeros(4, 5, 1)
        >>> TaskBatch(support=(x, y), query=(x, y))
        TaskBatch(tasks=4, support=Samples(x=[4, 5, 1], y=[4, 5, 1]), query=Samples(x=[4, 5, 1], \
y=[4, 5, 1]))
    """

    support: Samples
    query: Samples
    ids: tuple[Hashable, ...] | None = None
    ways: int | None = None

    def __init__(
        self,
        support: Samples | Pair,
        query: Samples | Pair,
        ids: Sequence[Hashable] | None = None,
        ways: int | None = None,
    ) -> None:
        object.__setattr__(self, "support", samples_of("support", support, ways))
        object.__setattr__(self, "query", samples_of("query", query, ways))
        object.__setattr__(self, "ids", _names(ids))
        if self.support.ways != self.query.ways:
            raise ValueError(
                "support and query must have the same number of classes, got "
                f"ways={self.support.ways} and ways={self.query.ways}. "
                "Pass ways to TaskBatch, which gives it to both."
            )
        object.__setattr__(self, "ways", self.support.ways)
        _check_batch(self)

    @classmethod
    def from_tasks(
        cls,
        tasks: Sequence[tuple[Pair, Pair]],
        ids: Sequence[Hashable] | None = None,
        ways: int | None = None,
    ) -> TaskBatch:
        """A batch of tasks that may differ in size; shorter ones are padded and masked.

        Args:
            tasks: ``[((x_support, y_support), (x_query, y_query)), ...]``, each ``[samples, ...]``.
            ids: As in the constructor.
            ways: As in the constructor.

        Example:
            >>> def task(n):
            ...     return (torch.ones(n, 1), torch.ones(n, 1)), (
            ...         torch.ones(2, 1),
            ...         torch.ones(2, 1),
            ...     )
            >>> TaskBatch.from_tasks([task(3), task(5)]).support
            Samples(x=[2, 5, 1], y=[2, 5, 1], real=8/10)
        """
        _check_tasks(tasks)
        if len(tasks) == 0:
            raise ValueError("tasks must hold at least one task, got none.")
        support = _stack([support for support, _ in tasks], "support")
        query = _stack([query for _, query in tasks], "query")
        return cls(support, query, ids=ids, ways=ways)

    @classmethod
    def from_torchmeta(
        cls,
        batch: Mapping[str, Sequence[Tensor]],
        ids: Sequence[Hashable] | None = None,
        ways: int | None = None,
    ) -> TaskBatch:
        """A batch from torchmeta's ``{"train": (x, y), "test": (x, y)}``.

        Example:
            >>> pair = torch.zeros(4, 5, 1), torch.zeros(4, 5, 1)
            >>> len(TaskBatch.from_torchmeta({"train": pair, "test": pair}))
            4
        """
        check_instance(
            "batch", batch, Mapping, "torchmeta yields {'train': (x, y), 'test': (x, y)}."
        )
        missing = {"train", "test"} - set(batch)
        if missing:
            raise ValueError(
                f"batch must have the keys 'train' and 'test', got {sorted(batch)}. Wrap the dataset "
                "in torchmeta's ClassSplitter, or build TaskBatch(support=..., query=...) yourself."
            )
        train, test = batch["train"], batch["test"]
        return cls((train[0], train[1]), (test[0], test[1]), ids=ids, ways=ways)

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, tasks: slice | Tensor | Sequence[int]) -> TaskBatch:
        """Some of the tasks, e.g. ``batch[:4]`` or ``batch[[0, 2]]``."""
        tasks = task_index(tasks)
        ids = self.ids
        if ids is not None:
            here = tasks if isinstance(tasks, slice) else tasks.cpu()
            ids = tuple(ids[i] for i in torch.arange(len(self))[here].tolist())
        return self.replace(self.support[tasks], self.query[tasks], ids)

    def to(self, *args: Any, **kwargs: Any) -> TaskBatch:
        """Like `torch.Tensor.to`; a dtype applies to floating-point tensors only."""
        return self.replace(self.support.to(*args, **kwargs), self.query.to(*args, **kwargs))

    def pin_memory(self) -> TaskBatch:
        """The batch in page-locked memory, for faster copies to a GPU."""
        return self.replace(self.support.pin_memory(), self.query.pin_memory())

    def replace(
        self, support: Samples, query: Samples, ids: tuple[Hashable, ...] | None = None
    ) -> TaskBatch:
        """A batch of other samples, taken to be sound; the ids stay unless others are given."""
        # Without the checks: they were made when the batch was, and some wait for the device.
        other = object.__new__(TaskBatch)
        parts = {"support": support, "query": query, "ids": ids or self.ids, "ways": self.ways}
        for name, value in parts.items():
            object.__setattr__(other, name, value)
        return other

    def __repr__(self) -> str:
        ways = "" if self.ways is None else f", ways={self.ways}"
        ids = "" if self.ids is None else f", ids={list(self.ids)}"
        return (
            f"TaskBatch(tasks={len(self)}, support={self.support}, query={self.query}{ways}{ids})"
        )


def check_batch(value: object, name: str = "batch") -> None:
    """Refuse what is no batch of tasks.

    Raises:
        TypeError: Saying how to make one.
    """
    if not isinstance(value, TaskBatch):
        raise TypeError(
            f"{name} must be a TaskBatch, got {type(value).__name__}. Build one with "
            "tr.TaskBatch(support=(xs, ys), query=(xq, yq))."
        )


def _names(ids: Sequence[Hashable] | None) -> tuple[Hashable, ...] | None:
    if ids is None:
        return None
    try:
        names = tuple(ids)
        hash(names)
    except TypeError:
        raise TypeError(f"ids must be a sequence of hashable names, got {shown(ids)}.") from None
    return names


def _check_tasks(tasks: Any) -> None:
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise TypeError(f"tasks must be a list of (support, query) pairs, got {shown(tasks)}.")
    for i, task in enumerate(tasks):
        if not isinstance(task, (tuple, list)) or len(task) != 2:
            raise TypeError(
                f"task {i} of tasks must be a pair (support, query), got {shown(task)}."
            )
        for name, part in zip(("support", "query"), task, strict=True):
            if not isinstance(part, (tuple, list)) or len(part) != 2:
                raise TypeError(f"task {i}: {name} must be a pair (x, y), got {shown(part)}.")


def _check_batch(batch: TaskBatch) -> None:
    support, query = batch.support, batch.query
    if len(support) != len(query):
        raise ValueError(
            f"support and query must have the same tasks, got {len(support)} and {len(query)}."
        )
    for name, one, other in (("x", support.x, query.x), ("y", support.y, query.y)):
        if not same_parts(one, other):
            raise ValueError(
                f"support and query must have the same parts in {name}, got {shape_of(one)} and "
                f"{shape_of(other)}."
            )
        if sizes_after(one, 2) != sizes_after(other, 2):
            raise ValueError(
                "support and query samples must have the same shape, got "
                f"{name} of {shape_of(one)} and {shape_of(other)}, without [tasks, samples]."
            )
    for (path, one), (_, other) in zip(leaves(support.y), leaves(query.y), strict=True):
        if one.is_floating_point() != other.is_floating_point():
            raise ValueError(
                f"support and query must both have labels or both numbers for targets{path}, got {one.dtype} "
                f"and {other.dtype}. Convert them: y.long() for labels, y.float() for numbers."
            )
    if batch.ids is not None and len(batch.ids) != len(support):
        raise ValueError(
            f"ids must name every task, got {len(batch.ids)} for {len(support)} tasks."
        )


def _stack(pairs: Sequence[Pair], name: str) -> Samples:
    both = [(as_data(x), as_data(y)) for x, y in pairs]
    for i, (x, y) in enumerate(both):
        for part, value in (("x", x), ("y", y)):
            for path, leaf in leaves(value):
                if not isinstance(leaf, Tensor):
                    raise TypeError(
                        f"task {i}: {name} {part}{path} must be a tensor, got {type(leaf).__name__}. "
                        "Convert it first."
                    )
                if leaf.ndim < 1:
                    raise ValueError(
                        f"task {i}: {name} {part}{path} must be [samples, ...], got []."
                    )
            check_together(f"task {i}'s {name} {part}", value, 1, "[samples]")
        if len(x) != len(y):
            raise ValueError(
                f"task {i}: {name} x and y must agree on [samples], "
                f"got {shape_of(x)} and {shape_of(y)}."
            )
        if len(x) == 0:
            raise ValueError(f"task {i} has an empty {name} set. Leave this task out of the batch.")
    columns = zip("xy", zip(*both, strict=True), strict=True)
    longest = max(len(x) for x, _ in both)
    x, y = (_column(f"{name} {part}", values, longest) for part, values in columns)
    sizes = [len(x) for x, _ in both]
    if min(sizes) == longest:
        return Samples(x, y)
    # Row by row: a tensor of the sizes would have to be copied to a GPU, which waits for it.
    place = torch.arange(longest, device=x.device)
    mask = torch.stack([place < size for size in sizes])
    return Samples(x, y, mask)


def _column(name: str, values: Sequence[Any], longest: int) -> Any:
    """All tasks' inputs, or targets, padded and stacked."""
    for i, value in enumerate(values):
        if not same_parts(values[0], value):
            raise ValueError(
                f"{name} must have the same parts in all tasks, got {shape_of(values[0])} in task 0 and "
                f"{shape_of(value)} in task {i}."
            )
    for (path, first), *others in zip(*map(leaves, values), strict=True):
        tensors = [first, *(leaf for _, leaf in others)]
        given = {(t.dtype, t.device) for t in tensors}
        if len(given) > 1:
            kinds = sorted(f"{dtype} on {device}" for dtype, device in given)
            raise ValueError(
                f"{name}{path} must have one dtype, on one device, in all tasks, got {' and '.join(kinds)}. "
                "Convert them first: .float() for numbers, .long() for labels, .to(device)."
            )
        shapes = [list(t.shape[1:]) for t in tensors]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None:
            raise ValueError(
                f"{name}{path} must have one shape of a sample in all tasks, got {shapes[0]} in task 0 and "
                f"{shapes[odd]} in task {odd}."
            )
    return joined(lambda tensors: torch.stack([_pad(t, longest) for t in tensors]), values)


def _pad(t: Tensor, size: int) -> Tensor:
    return torch.cat([t, t[:1].expand(size - len(t), *t.shape[1:])])
