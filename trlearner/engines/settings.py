"""What a graph depends on besides its inputs, and a cheap way to see that it is still the same.

A graph runs no Python: it repeats what the model and the loss did when they were traced. So its key holds
everything of Python that they may have read: see `Walk` for what that is, and how it is compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from trlearner.engines.walk import Walk, reference

KEPT = 64
"""So many roots are remembered as they were last seen."""


class Settings:
    """What was found, by path; equal to another if every entry is."""

    __slots__ = ("_hash", "found")

    def __init__(self, found: dict[str, Hashable]) -> None:
        self.found = found
        self._hash = hash(frozenset(found.items()))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Settings) and self.found == other.found)

    def __hash__(self) -> int:
        return self._hash

    def changed(self, other: Settings) -> list[str]:
        """The paths at which the two differ."""
        return [
            path
            for path in {**self.found, **other.found}
            if self.found.get(path, self) != other.found.get(path, self)
        ]


def settings(root: Any) -> Settings:
    """What a trace of `root` depends on; the very same object as before where nothing has changed."""
    return _seen(root).now()


def ignore(root: Any, paths: Iterable[str]) -> None:
    """From now on, what lies at these paths of `root` does not count."""
    _seen(root).ignore(paths)


class _Seen:
    """A root as it was last seen."""

    def __init__(self, root: Any, gone: Callable[[Any], Any]) -> None:
        self.root = reference(root, gone)
        self.ignored: set[str] = set()
        self.walk: Walk | None = None
        self.settings = Settings({})

    def now(self) -> Settings:
        if self.walk is None or not self.walk.unchanged():
            self.walk = Walk(self.root(), self.ignored)
            if (new := Settings(self.walk.found)) != self.settings:
                self.settings = new
        return self.settings

    def ignore(self, paths: Iterable[str]) -> None:
        self.ignored |= set(paths)
        self.walk = None


def _seen(root: Any) -> _Seen:
    key = id(root)
    seen = _roots.get(key)
    if seen is None or seen.root() is not root:
        seen = _roots[key] = _Seen(root, lambda _: _roots.pop(key, None))
        if len(_roots) > KEPT:
            _roots.popitem(last=False)
    _roots.move_to_end(key)
    return seen


_roots: OrderedDict[int, _Seen] = OrderedDict()
