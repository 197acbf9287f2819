"""Everything in Python that a trace may have read."""

from __future__ import annotations

import argparse
import enum
import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

LARGE = 1000
"""Containers of more entries are compared by identity and length."""
ENOUGH = 20_000
"""Once so many entries were found, further objects are compared by identity."""
PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), range, enum.Enum),
    *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format),
)
NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "trlearner"} - {"__main__"}
OURS = ("trlearner.experiments", "trlearner.integrations")  # written as a user would write it
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = [getattr(torch_module, "_global" + name) for name in HOOKS]
BOOKKEEPING = frozenset(nn.Module().__dict__) - {"training"}
DYNAMIC = {"getattr", "vars", "__dict__", "attrgetter", "eval"}
"""Code with one of these names may read any attribute."""


class Walk:
    """Everything within reach of a module or a function, and where it was read, to read it again quickly.

    | what | how it is compared |
    |---|---|
    | numbers, strings, dtypes and the like; containers of up to `LARGE` entries | by value |
    | attributes of modules, also private ones, and of objects of the user's own classes | by what they hold |
    | the user's functions: code, defaults, closure, and the globals that they name | by what they hold |
    | the user's classes: their attributes and methods | by what they hold |
    | hooks, also global ones; other objects; what belongs to a library | by identity |
    | tensors that are no parameter or buffer | by identity and version |
    | parameters | whether they require gradients; their values are inputs of a graph |

    Attributes that a class names in ``outside_graph`` are left out.

    Attributes:
        found: What there is, by path.

    Args:
        root: Where to start.
        ignored: Paths that do not count.
    """

    def __init__(self, root: Any, ignored: set[str]) -> None:
        self._ignored = ignored
        self.found: dict[str, Hashable] = {}
        self._paths: dict[int, str] = {}
        self._alive: list[Any] = []  # an id in `_paths` must not be given to another object
        self._named: list[tuple[Mapping[str, Any], tuple[Any, ...]]] = []
        self._items: list[Any] = []
        self._cells: list[types.CellType] = []
        self._slots: list[tuple[Any, str]] = []
        self._hooks: list[dict[int, Any]] = []
        self._parameters: list[dict[str, Tensor | None]] = []
        self._sized: list[Any] = []
        self._tensors: list[Tensor] = []
        self.add("", root)
        for name, hooks in zip(HOOKS, GLOBAL_HOOKS, strict=True):
            self._hooked("every module's " + name, hooks)
        self._saved, self._numbers = self._read()
        self._alive.clear()

    def unchanged(self) -> bool:
        """Whether every value that was read is the very object that it was."""
        try:
            now, numbers = self._read()
        except (KeyError, ValueError, AttributeError):  # an entry is gone
            return False
        same = len(now) == len(self._saved) and all(map(is_, now, self._saved))
        return same and numbers == self._numbers

    def _read(self) -> tuple[list[Any], list[int]]:
        now = [mapping[name] for mapping, names in self._named for name in names]
        for parameters in self._parameters:
            now += [p is not None and p.requires_grad for p in parameters.values()]
        if self._items:
            now += chain.from_iterable(self._items)
        if self._cells:
            now += [cell.cell_contents for cell in self._cells]
        if self._slots:
            now += [getattr(owner, name) for owner, name in self._slots]
        if any(self._hooks):
            now += chain.from_iterable(map(dict.values, self._hooks))
        numbers = list(map(len, self._sized))
        if self._tensors:
            numbers += map(_version, self._tensors)
        return now, numbers

    def add(self, path: str, value: Any, owner: type | None = None) -> None:
        """Notes a value, and what it holds."""
        if path in self._ignored:
            return
        if isinstance(value, PLAIN):
            self.found[path] = type(value), value
        elif isinstance(value, Tensor):
            self._tensors.append(value)
            self.found[path] = _Same(value), _version(value)
        elif id(value) in self._paths:
            self.found[path] = "as", self._paths[id(value)]
        elif len(self.found) > ENOUGH:
            self.found[path] = _Same(value)
        else:
            self._paths[id(value)] = path
            self._alive.append(value)
            self.found[path] = self._entered(path, value)

    def _entered(self, path: str, value: Any) -> Hashable:
        if isinstance(value, nn.Module):
            return self._module(path, value)
        if isinstance(value, (list, tuple, set, frozenset, deque, dict)):
            return self._container(path, value)
        if isinstance(value, types.FunctionType):
            return self._function(path, value)
        if isinstance(value, types.MethodType):
            return self._method(path, value)
        if isinstance(value, functools.partial):
            parts = {name: getattr(value, name) for name in ("func", "args", "keywords")}
            for name, part in parts.items():
                self.add(_at(path, name), part)
            return functools.partial
        if isinstance(value, (property, staticmethod, classmethod)):
            function = value.fget if isinstance(value, property) else value.__func__
            self.add(path + "()", function)
            return _Same(type(value))
        if isinstance(value, types.ModuleType | type):
            return _Same(value)
        if _of_library(type(value)) and not isinstance(value, NAMESPACES):
            return _Same(value)
        return self._object(path, value, None)

    def _module(self, path: str, module: nn.Module) -> Hashable:
        own = module.__dict__
        self._attributes(path, module, own, BOOKKEEPING)
        for name in HOOKS:
            self._hooked(_at(path, name), own[name])
        for name, child in self._entries(own["_modules"]):
            self.add(_at(path, name), child)
        self._parameters.append(own["_parameters"])
        for name, p in own["_parameters"].items():
            self.found[_at(path, name)] = p is not None and p.requires_grad
        return self._class(type(module))

    def _object(self, path: str, value: Any, only: set[str] | None) -> Hashable:
        own = getattr(value, "__dict__", {})
        skipped = frozenset() if only is None else frozenset(own) - only
        self._attributes(path, value, own, skipped)
        for name in _slots(type(value)):
            if hasattr(value, name) and (only is None or name in only):
                self._slots.append((value, name))
                self.add(_at(path, name), getattr(value, name))
        return self._class(type(value))

    def _attributes(
        self, path: str, owner: Any, own: Mapping[str, Any], skipped: frozenset[str]
    ) -> None:
        skipped = skipped.union(getattr(type(owner), "outside_graph", ()))
        names = tuple(n for n in own if n not in skipped and _at(path, n) not in self._ignored)
        self._named.append((own, names))
        self._sized.append(own)
        for name in names:
            self.add(_at(path, name), own[name])

    def _entries(self, mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
        self._named.append((mapping, tuple(mapping)))
        self._sized.append(mapping)
        return mapping.items()

    def _hooked(self, path: str, hooks: dict[int, Any]) -> None:
        self._hooks.append(hooks)
        self.found[path] = tuple(map(_Same, hooks.values()))

    def _class(self, kind: type) -> Hashable:
        """The user's own part of a class; of a library's the forward, which somebody may replace."""
        if id(kind) not in self._paths:
            self._paths[id(kind)] = kind.__qualname__
            for one in kind.__mro__:
                space, ours = vars(one), not _of_library(one)
                names = tuple(n for n in space if n == "forward" or (ours and _counts(n)))
                if names:
                    self._named.append((space, names))
                for name in names:
                    self.add(self._free(f"{one.__qualname__}.{name}"), space[name])
        return _Same(kind)

    def _container(self, path: str, value: Any) -> Hashable:
        if len(value) > LARGE:
            self._sized.append(value)
            return type(value), len(value), _Same(value)
        if isinstance(value, dict):
            for name, entry in self._entries(value):
                self.add(f"{path}[{name!r}]" if isinstance(name, PLAIN) else f"{path}[...]", entry)
            return type(value), len(value)
        if not isinstance(value, tuple):
            self._items.append(value)
            self._sized.append(value)
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(v if isinstance(v, PLAIN) else _Same(v) for v in value)
        for i, entry in enumerate(value):
            self.add(f"{path}[{i}]", entry)
        return type(value), len(value)

    def _method(self, path: str, method: types.MethodType) -> Hashable:
        function, owner = method.__func__, method.__self__
        self.add(path + "()", function)
        if isinstance(owner, nn.Module | type) or _of_library(type(owner)):
            self.add(_at(path, "__self__"), owner)
        elif (
            id(owner) not in self._paths
        ):  # of an object that does much else, what the method reads
            reads: set[str] = set()
            for reader in (function, *_without_name(type(owner))):
                reads |= set(_reads(reader, type(owner), reads))
            self._object(path, owner, None if reads & DYNAMIC else reads)
        return types.MethodType

    def _function(self, path: str, function: types.FunctionType) -> Hashable:
        if _of_library(function):
            return _Same(function)
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if cell != types.CellType():  # an empty one has nothing to be read
                self._cells.append(cell)
                self.add(_at(path, name), cell.cell_contents)
        for name in ("__defaults__", "__kwdefaults__", "__dict__"):
            if held := getattr(function, name):
                self.add(_at(path, name), held)
        self._globals(function.__globals__, set(_names(code)))
        return _Same(code)

    def _globals(self, space: dict[str, Any], names: set[str]) -> None:
        here = tuple(
            n
            for n in names
            if n in space and f"global {space.get('__name__')}.{n}" not in self.found
        )
        self._named.append((space, here))
        for name in here:
            value, path = space[name], f"global {space.get('__name__')}.{name}"
            self.add(path, value)
            if isinstance(value, types.ModuleType) and not _of_library(value):
                self._globals(vars(value), names)

    def _free(self, path: str) -> str:
        """A path that is not taken: two classes may have one name."""
        while path in self.found:
            path += "'"
        return path


class _Same:
    """In place of an object that is compared by identity, which it does not keep alive."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Any) -> None:
        self._value, self._hash = reference(value), id(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        value = self._value()
        return value is other._value() and (value is not None or self is other)

    def __hash__(self) -> int:
        return self._hash


def reference(value: Any, gone: Callable[[Any], Any] | None = None) -> Callable[[], Any]:
    """Returns the value while somebody else keeps it alive; `gone` is called when nobody does."""
    try:
        return weakref.ref(value, gone)
    except TypeError:
        return lambda: value


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _counts(name: str) -> bool:
    """Whether a class's entry of this name is the user's, not Python's."""
    return name == "__call__" or not (name.startswith("__") or name == "_abc_impl")


def _of_library(thing: Any) -> bool:
    name = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__ or ""
    return name.partition(".")[0] in LIBRARIES and not name.startswith(OURS)


def _slots(kind: type) -> Iterator[str]:
    for one in kind.__mro__:
        names = vars(one).get("__slots__", ())
        yield from (names,) if isinstance(names, str) else names


def _names(code: types.CodeType) -> Iterator[str]:
    """What code, and code within it, calls by name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _without_name(kind: type) -> Iterator[types.FunctionType]:
    """A class's methods that Python calls by itself, such as ``__call__``."""
    for name in dir(kind):
        method = getattr(kind, name, None)
        if name.startswith("__") and name != "__init__" and isinstance(method, types.FunctionType):
            yield method


def _reads(function: Any, kind: type, known: set[str]) -> Iterator[str]:
    """The names in a method, and in other methods of its class that these name."""
    new = set(_names(function.__code__)) - known
    known |= new
    for name in new:
        yield name
        other = getattr(getattr(kind, name, None), "__func__", getattr(kind, name, None))
        if isinstance(other, types.FunctionType):
            yield from _reads(other, kind, known)
