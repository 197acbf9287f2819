"""Functions that read the variables of a loop, which then hold what the last round put there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from operator import is_
from types import CodeType, FunctionType, MethodType
from typing import Any

PLAIN = (bool, int, float, str, type(None))


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
