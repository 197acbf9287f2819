"""Tensors inside of arguments that are no tensors, such as a cache of keys and values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors_held(value: Any) -> list[Tensor]:
    """The tensors inside of a value that is neither tensor nor tree of them, such as a cache of keys."""
    return [part for part in _parts(value, set()) if isinstance(part, Tensor)]


def rebuilt(value: Any, tensors: Mapping[int, Tensor]) -> Any:
    """A copy of a value that holds other tensors, given by the ids of those that it holds.

    Modules inside stay what they are; what cannot be copied is returned as it is.
    """
    modules = {id(part): part for part in _parts(value, set()) if isinstance(part, nn.Module)}
    try:
        return copy.deepcopy(value, {**tensors, **modules})
    except Exception:  # an open file, a generator
        return value


def unchained(value: Any) -> Any:
    """A copy that holds no graph."""
    return rebuilt(value, {id(t): t.detach().clone() for t in tensors_held(value)})


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen or isinstance(value, (type, str, bytes)):
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, nn.Module)):
        yield value
        return
    inside = list(value) if isinstance(value, (list, tuple, set)) else []
    inside += value.values() if isinstance(value, Mapping) else []
    for part in (*inside, *getattr(value, "__dict__", {}).values()):
        yield from _parts(part, seen)
