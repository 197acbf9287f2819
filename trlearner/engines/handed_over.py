"""What a user's loop hands over: adapted models, and whether they still are what they were then.

The loop may have set the variables anew that the model reads, or may have freed the graph behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from operator import is_
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from trlearner.base.checks import shown

PLAIN = (bool, int, float, str, type(None))


def check_parameters(name: str, value: Any) -> Any:
    """Adapted parameters, or where they start: ``None``, a tensor, or a dict, list or tuple of tensors.

    Raises:
        TypeError: They hold something else.
    """
    value = list(value) if isinstance(value, Iterator) else value
    odd = [t for t in tree_leaves(value) if not isinstance(t, Tensor)]
    if value is not None and odd:
        raise TypeError(
            f"{name} must hold parameters, a tensor or a dict, list or tuple of tensors, got {shown(odd[0])} "
            "in it."
        )
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two callables cannot differ: the same code reads the very same objects.

    Example:
        >>> made = [lambda: i for i in range(2)]
        >>> same(*made), same(*[lambda i=i: i for i in range(2)])
        (True, False)
    """
    if a is b:
        return True
    if isinstance(a, MethodType) and isinstance(b, MethodType):
        return a.__self__ is b.__self__ and same(a.__func__, b.__func__)
    if isinstance(a, partial) and isinstance(b, partial):
        return same(a.func, b.func) and _identical(_arguments(a), _arguments(b))
    if isinstance(a, FunctionType) and isinstance(b, FunctionType):
        if a.__code__ is not b.__code__ or a.__globals__ is not b.__globals__:
            return False
        return _identical(_held(a), _held(b))
    return False


def bindings(function: Any) -> dict[str, Any]:
    """The variables outside of a function that it reads, as they are now; numbers and the like left out."""
    if isinstance(function, partial):
        return bindings(function.func)
    if isinstance(function, MethodType):
        return bindings(function.__func__)
    if not isinstance(function, FunctionType):
        return {}
    space = function.__globals__
    found = {n: space[n] for n in _names(function.__code__) if n in space}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        found[name] = _content(cell)
    return {name: value for name, value in found.items() if not isinstance(value, PLAIN)}


def rebound(function: Any, before: dict[str, Any]) -> list[str]:
    """Of the variables in `before`, those that are other objects by now."""
    now = bindings(function)
    return [name for name, value in before.items() if now.get(name) is not value]


def _held(function: FunctionType) -> list[Any]:
    defaults = (function.__defaults__ or (), (function.__kwdefaults__ or {}).values())
    return [*chain(*defaults), *map(_content, function.__closure__ or ())]


def _arguments(made: partial[Any]) -> list[Any]:
    names = sorted(made.keywords)
    return [*made.args, *names, *(made.keywords[name] for name in names)]


def _identical(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put there yet
        return None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def clock() -> int:
    """Every node of autograd's graph that this thread makes from now on has a higher number."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).mul(1).grad_fn
    return int(node._sequence_nr())


def backward_has_passed(output: Tensor, started: int) -> bool:
    """Whether a backward pass has freed the graph of what `output` was computed from.

    Args:
        output: Computed after `started`.
        started: `clock` of then; older nodes are looked at.
    """
    seen: set[Any] = set()
    stack = [output.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        old = node._sequence_nr() <= started
        if old and (freed := _freed(node)) is not None:
            if freed:
                return True
            continue  # what lies below an intact node is not of interest
        stack.extend(parent for parent, _ in node.next_functions)
    return False


def _freed(node: Any) -> bool | None:
    """Whether what a node saved is gone; nothing is known of one that saved no tensor."""
    for name in dir(node):
        if name == "saved_tensors" or (
            name.startswith("_saved_") and not name.startswith("_saved_self_s")
        ):
            try:
                value = getattr(node, name)
            except RuntimeError as error:
                if "freed" in str(error):
                    return True
                continue
            if isinstance(value, Tensor) or (isinstance(value, tuple) and value):
                return False
    return None
