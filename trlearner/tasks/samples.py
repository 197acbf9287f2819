"""The samples of many tasks as tensors, unequal sizes padded and masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trlearner.base.checks import check_whole, shown
from trlearner.base.functional import take
from trlearner.tasks.nested import Nested, as_data, holds_labels, joined, leaves, mapped
from trlearner.tasks.nested import shown as shape_of

Pair = tuple[Any, Any]
"""Inputs and targets: tensors, or dicts, tuples and lists of tensors."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of every task of a batch; unpacks as ``x, y, *_``.

    Args:
        x: Inputs, ``[tasks, samples, ...]``: a tensor, or dicts, tuples and lists of tensors, which become a
            `Nested`; its ``.tree`` is what was given.
        y: Targets, ``[tasks, samples, ...]``, given in the same way.
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

    x: Any
    y: Any
    mask: Tensor | None = None
    ways: int | None = None
    labelled: bool = field(init=False)  # whether targets are class labels

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", as_data(self.x))
        object.__setattr__(self, "y", as_data(self.y))
        _check_shapes(self.x, self.y, self.mask)
        if self.mask is not None:
            object.__setattr__(self, "x", _fill(self.x, self.mask))
            object.__setattr__(self, "y", _fill(self.y, self.mask))
        object.__setattr__(self, "labelled", holds_labels(self.y))
        check_whole("ways", self.ways, optional=True)
        if self.ways is not None and not self.labelled:
            raise ValueError(
                f"ways={self.ways} is for class labels, but the targets are {_kind(self.y)}. "
                "Leave ways out for regression, or convert labels with y.long()."
            )
        if self.x.device.type == "cpu":
            _check_values(self.x, self.y, self.ways)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y, self.mask))

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, tasks: slice | Tensor | Sequence[int]) -> Samples:
        """The samples of some tasks, e.g. ``samples[:4]``."""
        index = task_index(tasks)
        chosen = self._of(lambda t: t[index])
        if len(chosen) == 0:
            raise ValueError(f"{tasks} selects none of the {len(self)} tasks; select at least one.")
        return chosen

    def clone(self) -> Samples:
        """A copy; outside of inference mode, one that autograd can use."""
        return self._of(torch.clone)

    def choose(self, choice: Tensor) -> Samples:
        """Some samples of each task: ``choice [tasks, chosen]`` holds their positions."""
        return self._of(lambda t: take(t, choice))

    def padded(self, samples: int) -> Samples:
        """Masked samples with more padding, so that every task has so many in all."""
        missing = samples - self.x.shape[1]
        if missing <= 0 or self.mask is None:
            return self

        def more(t: Tensor) -> Tensor:
            return torch.cat([t, t[:, :1].expand(-1, missing, *t.shape[2:])], 1)

        mask = torch.cat([self.mask, self.mask.new_zeros(len(self), missing)], 1)
        return self.unchecked(mapped(more, self.x), mapped(more, self.y), mask, self.ways)

    def is_real(self) -> Tensor:
        """Which samples are no padding ``[tasks, samples]``, also where there is no mask."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)

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
        return self._of(lambda t: t.pin_memory())

    @classmethod
    def unchecked(cls, x: Any, y: Any, mask: Tensor | None, ways: int | None) -> Samples:
        """Samples made from parts of checked ones, whose padding is filled; costs nothing."""
        made = object.__new__(cls)
        values = {"x": x, "y": y, "mask": mask, "ways": ways, "labelled": holds_labels(y)}
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made

    def _of(self, function: Callable[[Tensor], Tensor]) -> Samples:
        mask = None if self.mask is None else function(self.mask)
        return self.unchecked(mapped(function, self.x), mapped(function, self.y), mask, self.ways)

    def __repr__(self) -> str:
        mask = "" if self.mask is None else f", real={int(self.mask.sum())}/{self.mask.numel()}"
        return f"Samples(x={shape_of(self.x)}, y={shape_of(self.y)}{mask})"


def _check_shapes(x: Any, y: Any, mask: Tensor | None) -> None:
    for name, value in (("x", x), ("y", y)):
        for path, leaf in leaves(value):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name}{path} must be a tensor, got {type(leaf).__name__}. Convert it first."
                )
            if leaf.ndim < 2:
                raise ValueError(
                    f"{name}{path} must be [tasks, samples, ...], got {list(leaf.shape)}. For one task, "
                    "add the axis: x[None]."
                )
        check_together(name, value, 2, "[tasks, samples]")
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            f"x and y must agree on [tasks, samples], got {shape_of(x)} and {shape_of(y)}. For "
            "tasks of unequal size use TaskBatch.from_tasks."
        )
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"every task needs at least one sample, got x of shape {shape_of(x)}.")
    if mask is None:
        return
    check_mask(mask, x)
    check_real(mask, "sample", "Leave these tasks out of the batch.")


def check_together(name: str, value: Any, axes: int, called: str) -> None:
    """Refuse a structure whose tensors differ in their first axes, or in where they lie.

    Args:
        name: What errors call it.
        value: `Nested`; a tensor passes.
        axes: How many must agree.
        called: What errors call these axes.

    Raises:
        ValueError: Naming two leaves.
    """
    if not isinstance(value, Nested):
        return
    (first, one), *others = value.named()
    for path, leaf in others:
        if leaf.shape[:axes] != one.shape[:axes]:
            raise ValueError(
                f"all parts of {name} must agree on {called}, got {name}{first} {list(one.shape)} and "
                f"{name}{path} {list(leaf.shape)}."
            )
        if leaf.device != one.device:
            raise ValueError(
                f"all parts of {name} must be on one device, got {name}{first} on {one.device} and "
                f"{name}{path} on {leaf.device}."
            )


def check_mask(mask: Tensor, x: Any, axis: str = "samples") -> None:
    """Refuse what is no mask of ``x [tasks, samples, ...]``; `axis` is what the second axis is called.

    Raises:
        TypeError: It is no tensor.
        ValueError: It has another shape or type.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}. Convert it first.")
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be a bool tensor [tasks, {axis}] = {list(x.shape[:2])}, "
            f"got {mask.dtype} {list(mask.shape)}. It is true where one is real."
        )


def check_real(mask: Tensor, one: str, fix: str) -> None:
    """Refuse a mask under which a task has nothing left; looked at on the CPU only, where nothing waits.

    Args:
        mask: ``[tasks, samples]``.
        one: What a sample is called.
        fix: What to do about it.

    Raises:
        ValueError: Naming the tasks.
    """
    if mask.device.type == "cpu" and not mask.any(1).all():
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"every task needs at least one real {one}, but mask is all false for tasks {empty}. {fix}"
        )


def _check_values(x: Any, y: Any, ways: int | None) -> None:
    for name, value in (("x", x), ("y", y)):
        for path, leaf in leaves(value):
            if leaf.is_floating_point() and not torch.isfinite(leaf.sum()):
                tasks = (~torch.isfinite(leaf)).flatten(1).any(1).nonzero().flatten().tolist()
                if tasks:
                    raise ValueError(
                        f"{name}{path} must be finite, got NaN or infinity in tasks {tasks}. Drop these "
                        "samples, or mark missing ones with a mask."
                    )
    if ways is not None and not (int(y.min()) >= 0 and int(y.max()) < ways):
        raise ValueError(
            f"labels must lie in 0..{ways - 1} for ways={ways}, got {int(y.min())}..{int(y.max())}. "
            "Number each task's classes from zero."
        )


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else f"several tensors {shape_of(value)}"


def _fill(value: Any, mask: Tensor) -> Any:
    def filled(t: Tensor) -> Tensor:
        first = t[torch.arange(len(t), device=t.device), mask.int().argmax(1)].unsqueeze(1)
        return torch.where(mask.reshape(*mask.shape, *[1] * (t.ndim - 2)), t, first)

    return mapped(filled, value)


def check_pair(name: str, value: Any) -> None:
    """Refuse what is no pair of inputs and targets of one task.

    Raises:
        TypeError: Naming the argument.
    """
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    parts = [leaf for part in value for _, leaf in leaves(as_data(part))] if pair else []
    if not pair or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            f"{name} must be a pair (x, y) of tensors [samples, ...], or of dicts, tuples and lists of "
            f"them, got {shown(value)}."
        )


def concatenated(a: Samples, b: Samples, mask: Tensor | None) -> Samples:
    """The samples of both for each task, those of `a` first; `mask` says which are real."""

    def both(t: Any, u: Any) -> Any:
        return joined(lambda parts: torch.cat(parts, 1), [t, u])

    return Samples.unchecked(both(a.x, b.x), both(a.y, b.y), mask, a.ways)


def samples_of(name: str, value: Samples | Pair, ways: int | None = None) -> Samples:
    """`Samples` of what was given for them: these themselves, or a pair.

    Raises:
        TypeError: Naming the argument.
        ValueError: Naming the argument and what does not fit.
    """
    if not isinstance(value, Samples) and not (
        isinstance(value, (tuple, list)) and len(value) == 2
    ):
        raise TypeError(
            f"{name} must be a pair (x, y) of tensors [tasks, samples, ...], or Samples, got {shown(value)}."
        )
    try:
        if isinstance(value, Samples):
            return value if ways in (None, value.ways) else replace(value, ways=ways)
        return Samples(value[0], value[1], ways=ways)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def task_index(tasks: slice | Tensor | Sequence[int]) -> slice | Tensor:
    """What to index the axis of tasks with; one number is refused, for it would drop that axis."""
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
