"""Tasks as tensors: `Samples` of many tasks, and the `TaskBatch` that pairs support and query."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trlearner.functional import take

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of every task of a batch; unpacks as ``x, y, *_``.

    Args:
        x: Inputs, ``[tasks, samples, ...]``.
        y: Targets, ``[tasks, samples, ...]``.
        mask: ``[tasks, samples]``, true where a sample is real; ``None`` where all are. What
            stands under a false entry is never read: it is replaced by the task's first real sample.
        ways: The number of classes of every task, for integer targets; static, so that it is
            never read off the data.

    Raises:
        ValueError: Sizes disagree, a task is empty, a value is NaN or infinite, or a label is
            outside of ``range(ways)``. Values are looked at on the CPU only, where that costs no
            waiting for a device.
        TypeError: Something that should be a tensor is none.

    Example:
        >>> samples = Samples(torch.zeros(4, 5, 1), torch.zeros(4, 5, 1))
        >>> x, y, *_ = samples
        >>> len(samples), x.shape
        (4, torch.Size([4, 5, 1]))
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    ways: int | None = None

    def __post_init__(self) -> None:
        _check_shapes(self.x, self.y, self.mask)
        if self.mask is not None:
            object.__setattr__(self, "x", _fill(self.x, self.mask))
            object.__setattr__(self, "y", _fill(self.y, self.mask))
        if self.ways is not None and not (isinstance(self.ways, int) and self.ways >= 1):
            raise ValueError(
                f"ways must be a whole number of at least 1, or None, got {self.ways!r}."
            )
        if self.ways is not None and self.y.is_floating_point():
            raise ValueError(
                f"ways={self.ways} is for class labels, but the targets are {self.y.dtype}. "
                "Leave ways out for regression, or convert labels with y.long()."
            )
        if self.x.device.type == "cpu":
            _check_values(self.x, self.y, self.ways)

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.x, self.y, self.mask))

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, tasks: slice | Tensor | Sequence[int]) -> Samples:
        """The samples of some tasks, e.g. ``samples[:4]``."""
        index = _task_index(tasks)
        chosen = self._of(lambda t: t[index])
        if len(chosen) == 0:
            raise ValueError(f"{tasks} selects none of the {len(self)} tasks; select at least one.")
        return chosen

    def choose(self, choice: Tensor) -> Samples:
        """Some samples of each task: ``choice [tasks, chosen]`` holds their positions."""
        return self._of(lambda t: take(t, choice))

    def real(self, task: int) -> Pair:
        """The real samples of one task, without padding: ``x [samples, ...], y [samples, ...]``."""
        x, y = self.x[task], self.y[task]
        if self.mask is None:
            return x, y
        keep = self.mask[task]
        return x[keep], y[keep]

    def to(self, *args: Any, **kwargs: Any) -> Samples:
        """Like `torch.Tensor.to`; a dtype applies to floating-point tensors only."""
        return self._of(lambda t: _to(t, *args, **kwargs))

    def pin_memory(self) -> Samples:
        """The samples in page-locked memory, for faster copies to a GPU."""
        return self._of(Tensor.pin_memory)

    @classmethod
    def unchecked(cls, x: Tensor, y: Tensor, mask: Tensor | None, ways: int | None) -> Samples:
        """Samples made from parts of checked ones, whose padding is filled; costs nothing."""
        made = object.__new__(cls)
        for name, value in (("x", x), ("y", y), ("mask", mask), ("ways", ways)):
            object.__setattr__(made, name, value)
        return made

    def _of(self, function: Callable[[Tensor], Tensor]) -> Samples:
        mask = None if self.mask is None else function(self.mask)
        return self.unchecked(function(self.x), function(self.y), mask, self.ways)

    def __repr__(self) -> str:
        mask = "" if self.mask is None else f", real={int(self.mask.sum())}/{self.mask.numel()}"
        return f"Samples(x={list(self.x.shape)}, y={list(self.y.shape)}{mask})"


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
        object.__setattr__(self, "support", _samples(support, "support", ways))
        object.__setattr__(self, "query", _samples(query, "query", ways))
        object.__setattr__(self, "ids", None if ids is None else tuple(ids))
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
        tasks = _task_index(tasks)
        ids = self.ids
        if ids is not None:
            here = tasks if isinstance(tasks, slice) else tasks.cpu()
            ids = tuple(ids[i] for i in torch.arange(len(self))[here].tolist())
        return self._with(self.support[tasks], self.query[tasks], ids)

    def to(self, *args: Any, **kwargs: Any) -> TaskBatch:
        """Like `torch.Tensor.to`; a dtype applies to floating-point tensors only."""
        return self._with(
            self.support.to(*args, **kwargs), self.query.to(*args, **kwargs), self.ids
        )

    def pin_memory(self) -> TaskBatch:
        """The batch in page-locked memory, for faster copies to a GPU."""
        return self._with(self.support.pin_memory(), self.query.pin_memory(), self.ids)

    def replace(self, support: Samples, query: Samples) -> TaskBatch:
        """The same tasks with other samples, which are taken to be sound."""
        return self._with(support, query, self.ids)

    def _with(
        self, support: Samples, query: Samples, ids: tuple[Hashable, ...] | None
    ) -> TaskBatch:
        # Without the checks: they were made when the batch was, and some wait for the device.
        other = object.__new__(TaskBatch)
        for name, value in [("support", support), ("query", query), ("ids", ids)]:
            object.__setattr__(other, name, value)
        object.__setattr__(other, "ways", self.ways)
        return other

    def __repr__(self) -> str:
        ways = "" if self.ways is None else f", ways={self.ways}"
        ids = "" if self.ids is None else f", ids={list(self.ids)}"
        return (
            f"TaskBatch(tasks={len(self)}, support={self.support}, query={self.query}{ways}{ids})"
        )


def _samples(value: Samples | Pair, name: str, ways: int | None) -> Samples:
    if not isinstance(value, Samples) and not (
        isinstance(value, (tuple, list)) and len(value) == 2
    ):
        raise TypeError(
            f"{name} must be a pair (x, y) of tensors [tasks, samples, ...], or Samples, "
            f"got {type(value).__name__}."
        )
    try:
        if isinstance(value, Samples):
            return value if ways in (None, value.ways) else replace(value, ways=ways)
        return Samples(value[0], value[1], ways=ways)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _check_shapes(x: Tensor, y: Tensor, mask: Tensor | None) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(value).__name__}. Convert it first."
            )
        if value.ndim < 2:
            raise ValueError(
                f"{name} must be [tasks, samples, ...], got {list(value.shape)}. For one task, add "
                "the axis: x[None]."
            )
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"x and y must agree on [tasks, samples], got {list(x.shape)} and {list(y.shape)}. For "
            "tasks of unequal size use TaskBatch.from_tasks."
        )
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"every task needs at least one sample, got x of shape {list(x.shape)}.")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}. Convert it first.")
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be a bool tensor [tasks, samples] = {list(x.shape[:2])}, "
            f"got {mask.dtype} {list(mask.shape)}."
        )
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"every task needs at least one real sample, but mask is all false for tasks {empty}. "
            "Leave these tasks out of the batch."
        )


def _check_values(x: Tensor, y: Tensor, ways: int | None) -> None:
    for name, value in (("x", x), ("y", y)):
        if value.is_floating_point() and not torch.isfinite(value.sum()):
            tasks = (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()
            if tasks:
                raise ValueError(
                    f"{name} must be finite, got NaN or infinity in tasks {tasks}. Drop these samples, "
                    "or mark missing ones with a mask."
                )
    if ways is not None and not (int(y.min()) >= 0 and int(y.max()) < ways):
        raise ValueError(
            f"labels must lie in 0..{ways - 1} for ways={ways}, got {int(y.min())}..{int(y.max())}. "
            "Number each task's classes from zero."
        )


def _check_batch(batch: TaskBatch) -> None:
    support, query = batch.support, batch.query
    if len(support) != len(query):
        raise ValueError(
            f"support and query must have the same tasks, got {len(support)} and {len(query)}."
        )
    if support.x.shape[2:] != query.x.shape[2:] or support.y.shape[2:] != query.y.shape[2:]:
        raise ValueError(
            "support and query samples must have the same shape, got "
            f"x {list(support.x.shape[2:])} and {list(query.x.shape[2:])}, "
            f"y {list(support.y.shape[2:])} and {list(query.y.shape[2:])}."
        )
    if batch.ids is not None and len(batch.ids) != len(support):
        raise ValueError(
            f"ids must name every task, got {len(batch.ids)} for {len(support)} tasks."
        )


def _stack(pairs: Sequence[Pair], name: str) -> Samples:
    for i, (x, y) in enumerate(pairs):
        for value in (x, y):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"task {i}: {name} x and y must be tensors, got {type(value).__name__}. "
                    "Convert them first."
                )
        if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise ValueError(
                f"task {i}: {name} x and y must agree on [samples], "
                f"got {list(x.shape)} and {list(y.shape)}."
            )
        if len(x) == 0:
            raise ValueError(f"task {i} has an empty {name} set. Leave this task out of the batch.")
    sizes = [len(x) for x, _ in pairs]
    longest = max(sizes)
    try:
        x = torch.stack([_pad(x, longest) for x, _ in pairs])
        y = torch.stack([_pad(y, longest) for _, y in pairs])
    except RuntimeError:
        shapes = [(list(x.shape[1:]), list(y.shape[1:])) for x, y in pairs]
        raise ValueError(
            f"{name} samples must have one shape in all tasks, got (x, y) shapes {shapes}."
        ) from None
    if min(sizes) == longest:
        return Samples(x, y)
    mask = torch.arange(longest, device=x.device) < torch.tensor(sizes, device=x.device)[:, None]
    return Samples(x, y, mask)


def _pad(t: Tensor, size: int) -> Tensor:
    return torch.cat([t, t[:1].expand(size - len(t), *t.shape[1:])])


def _fill(t: Tensor, mask: Tensor) -> Tensor:
    first = t[torch.arange(len(t), device=t.device), mask.int().argmax(1)].unsqueeze(1)
    return torch.where(mask.reshape(*mask.shape, *[1] * (t.ndim - 2)), t, first)


def _task_index(tasks: slice | Tensor | Sequence[int]) -> slice | Tensor:
    if isinstance(tasks, slice):
        return tasks
    index = torch.as_tensor(tasks)
    if index.numel() == 0:
        return slice(0, 0)
    if index.ndim == 0:
        one = int(index)
        raise TypeError(f"index tasks with a slice or a list, got {one}: use [{one}:{one + 1}].")
    return index


def _to(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not t.is_floating_point():
        args = tuple(a for a in args if not isinstance(a, torch.dtype))
        kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
        # t.to(other) takes other's dtype as well; here only its device counts.
        args = tuple(a.device if isinstance(a, Tensor) else a for a in args)
    return t.to(*args, **kwargs)
