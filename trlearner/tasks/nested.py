"""Several tensors that go through the library like one: inputs, targets and predictions with a structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    register_pytree_node,
    tree_flatten,
    tree_flatten_with_path,
    tree_unflatten,
)


class Nested:
    """Dicts, tuples and lists of tensors whose first axes agree, indexed and moved like one tensor.

    Args:
        tree: Of tensors.

    Example:
        >>> both = Nested({"ids": torch.zeros(4, 5, 7).long(), "age": torch.zeros(4, 5)})
        >>> both.shape, len(both[:2]), both[0]["ids"].shape
        (torch.Size([4, 5]), 2, torch.Size([5, 7]))
    """

    __slots__ = ("leaves", "spec")

    def __init__(self, tree: Any) -> None:
        self.leaves, self.spec = tree_flatten(tree)

    @classmethod
    def of(cls, leaves: Sequence[Any], spec: TreeSpec) -> Nested:
        """Leaves in a structure that is known."""
        made = object.__new__(cls)
        made.leaves, made.spec = list(leaves), spec
        return made

    @property
    def tree(self) -> Any:
        """The structure as the user gave it."""
        return tree_unflatten(self.leaves, self.spec)

    def map(self, function: Callable[[Tensor], Tensor]) -> Nested:
        """The same structure with ``function(leaf)`` in place of each leaf."""
        return Nested.of([function(leaf) for leaf in self.leaves], self.spec)

    def named(self) -> list[tuple[str, Any]]:
        """Each leaf with its path, such as ``['ids']``."""
        return [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(self.tree)[0]]

    @property
    def shape(self) -> torch.Size:
        """The first axes, as far as all leaves agree."""
        first, *others = [leaf.shape for leaf in self.leaves]
        same = 0
        while same < len(first) and all(o[: same + 1] == first[: same + 1] for o in others):
            same += 1
        return first[:same]

    @property
    def device(self) -> torch.device:
        """Where the first leaf lies; they are checked to lie together."""
        return self.leaves[0].device

    @property
    def is_cuda(self) -> bool:
        """Whether that is a CUDA device."""
        return self.leaves[0].is_cuda

    @property
    def is_cpu(self) -> bool:
        """Whether that is the CPU."""
        return self.leaves[0].is_cpu

    @property
    def dtype(self) -> torch.dtype:
        """Of the first leaf that holds floating-point numbers, or else of the first."""
        return next((t for t in self.leaves if t.is_floating_point()), self.leaves[0]).dtype

    def is_floating_point(self) -> bool:
        """Whether every leaf holds floating-point numbers."""
        return all(leaf.is_floating_point() for leaf in self.leaves)

    def __len__(self) -> int:
        return len(self.leaves[0])

    def __getitem__(self, index: Any) -> Any:
        """A branch by its key, or the leaves at an index of their first axes."""
        if isinstance(index, str):
            return self.tree[index]
        return self.map(lambda leaf: leaf[index])

    def flatten(self, start: int, end: int) -> Nested:
        """As of a tensor, for first axes."""
        return self.map(lambda leaf: leaf.flatten(start, end))

    def unflatten(self, axis: int, sizes: Sequence[int]) -> Nested:
        """As of a tensor, for first axes."""
        return self.map(lambda leaf: leaf.unflatten(axis, sizes))

    def contiguous(self) -> Nested:
        """As of a tensor."""
        return self.map(Tensor.contiguous)

    def clone(self) -> Nested:
        """As of a tensor."""
        return self.map(torch.clone)

    def detach(self) -> Nested:
        """As of a tensor."""
        return self.map(Tensor.detach)

    def __repr__(self) -> str:
        return shown(self)


register_pytree_node(
    Nested,
    lambda nested: (nested.leaves, nested.spec),
    lambda leaves, spec: Nested.of(list(leaves), spec),
    serialized_type_name="trlearner.tasks.nested.Nested",
)

Data = Tensor | Nested
"""What a batch holds of inputs or targets."""
D = TypeVar("D", bound=Data)


def as_data(value: Any) -> Any:
    """A structure as `Nested`; anything else as it is."""
    return Nested(value) if isinstance(value, (Mapping, tuple, list)) and value else value


def holds_labels(targets: Data) -> bool:
    """Whether targets are class labels: whole numbers, in one tensor."""
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def raw(value: Any) -> Any:
    """What `as_data` was given."""
    return value.tree if isinstance(value, Nested) else value


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``function`` of a tensor, or of every leaf."""
    return value.map(function) if isinstance(value, Nested) else function(value)


def leaves(value: Any) -> list[tuple[str, Any]]:
    """Every tensor with its path, which is empty where there is but one."""
    return value.named() if isinstance(value, Nested) else [("", value)]


def arranged(like: Data, tensors: Sequence[Tensor]) -> Data:
    """Other tensors in the structure of `like`."""
    return Nested.of(tensors, like.spec) if isinstance(like, Nested) else tensors[0]


def joined(function: Callable[[list[Tensor]], Tensor], values: Sequence[Any]) -> Any:
    """``function([tensors])``, such as `torch.stack` or `torch.cat`; leaf by leaf."""
    first = values[0]
    if not isinstance(first, Nested):
        return function(list(values))
    columns = zip(*(value.leaves for value in values), strict=True)
    return Nested.of([function(list(column)) for column in columns], first.spec)


def per_task(function: Callable[[int, Any], Any], mask: Tensor | None, tasks: int) -> Any:
    """Stacks ``function(task, keep)`` over tasks, where ``keep`` selects a task's real samples.

    Args:
        function: Returns ``[real samples, ...]``.
        mask: ``[tasks, samples]``, true where a sample is real.
        tasks: How many.

    Returns:
        ``[tasks, samples, ...]``, zero where no sample is real.
    """
    if mask is None:
        return joined(torch.stack, [function(i, slice(None)) for i in range(tasks)])

    def padded(keep: Tensor, real: Tensor) -> Tensor:
        return real.new_zeros(len(keep), *real.shape[1:]).index_put((keep,), real)

    rows = [mapped(partial(padded, keep), function(i, keep)) for i, keep in enumerate(mask)]
    return joined(torch.stack, rows)


def have_tasks(value: Any, tasks: int) -> bool:
    """Whether every part is a tensor ``[tasks, samples, ...]`` of so many tasks."""
    tensors = [leaf for _, leaf in leaves(value)]
    return all(isinstance(t, Tensor) and t.ndim >= 2 and len(t) == tasks for t in tensors)


def same_parts(one: Any, other: Any) -> bool:
    """Whether two values hold tensors at the same paths."""
    return [path for path, _ in leaves(one)] == [path for path, _ in leaves(other)]


def sizes_after(value: Data, axes: int) -> tuple[torch.Size, ...]:
    """The shape of every leaf without its first axes."""
    return tuple(leaf.shape[axes:] for _, leaf in leaves(value))


def flat(value: Data, axes: int) -> Tensor:
    """``[*axes, ...] -> [*axes, features]``: every number that is there, of all leaves side by side."""
    tensors = [leaf for _, leaf in leaves(value)]
    rows = [t.flatten(axes) if t.ndim > axes else t[..., None] for t in tensors]
    return rows[0] if len(rows) == 1 else torch.cat(rows, -1)


def shown(value: Any) -> str:
    """Shapes, for an error."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Nested):
        each = [f"{path}: {shown(leaf)}" for path, leaf in value.named()]
        return "{" + ", ".join(each) + "}"
    return type(value).__name__


class Layout(NamedTuple):
    """How predictions of several tensors lie side by side in one.

    Attributes:
        spec: Their structure.
        sizes: What one sample's has, leaf by leaf.
    """

    spec: TreeSpec
    sizes: tuple[torch.Size, ...]


def layout_of(predictions: Any, axes: int) -> Layout | None:
    """How predictions ``[*axes, ...]`` of several tensors lie in one; ``None`` if they are one."""
    if not isinstance(predictions, Nested):
        return None
    return Layout(predictions.spec, sizes_after(predictions, axes))


def packed(predictions: Any, axes: int) -> Tensor:
    """Predictions ``[*axes, ...]`` in one tensor.

    Example:
        >>> both = Nested((torch.ones(3, 2), torch.zeros(3)))
        >>> one, layout = packed(both, 1), layout_of(both, 1)
        >>> one.shape, [leaf.shape for leaf in unpacked(one, layout, 1).leaves]
        (torch.Size([3, 3]), [torch.Size([3, 2]), torch.Size([3])])
    """
    if isinstance(predictions, Tensor):
        return predictions
    only: Tensor = predictions.leaves[0]
    return only if len(predictions.leaves) == 1 else flat(predictions, axes)


def unpacked(predictions: Tensor, layout: Layout | None, axes: int) -> Any:
    """Of what `packed` made: `Nested` where there is a layout."""
    if layout is None:
        return predictions
    if len(layout.sizes) == 1:
        return Nested.of([predictions], layout.spec)
    parts = predictions.split([size.numel() for size in layout.sizes], axes)
    rows = zip(parts, layout.sizes, strict=True)
    return Nested.of([p.reshape(*p.shape[:axes], *size) for p, size in rows], layout.spec)
