"""What a person knows of the tasks: their names, their families, how similar they truly are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trlearner.base.checks import shown

Value = TypeVar("Value")
Known = Callable[[Hashable], Value] | Mapping[Hashable, Value]


def check_known(name: str, value: object) -> None:
    """Refuse what says nothing of an id.

    Raises:
        TypeError: Naming the argument.
    """
    if not (value is None or callable(value) or isinstance(value, Mapping)):
        raise TypeError(f"{name} must be a function of an id or a mapping, got {shown(value)}.")


@dataclass(frozen=True)
class Knowledge:
    """Asked by tasks' ids.

    Attributes:
        names: How an id is written.
        families: Which family it belongs to, if that is known.
        similarity: How similar the tasks of these ids are, ``[tasks, tasks]``, if that is known.
    """

    names: Known[str]
    families: Known[Hashable] | None
    similarity: Callable[[Sequence[Hashable]], Any] | None

    def name(self, id: Hashable) -> str:
        """As it is written."""
        return str(_ask(self.names, id, "names"))

    def group(self, id: Hashable) -> Hashable:
        """By what the history is kept: the family, if that is known, or the task itself."""
        return id if self.families is None else _ask(self.families, id, "families")

    def group_name(self, group: Hashable) -> str:
        """A `group` as it is written."""
        return self.name(group) if self.families is None else str(group)

    def families_of(self, ids: Sequence[Hashable]) -> list[Hashable] | None:
        """Of several tasks."""
        return None if self.families is None else [self.group(id) for id in ids]

    def truth(self, ids: Sequence[Hashable]) -> NDArray[Any] | None:
        """How similar they are.

        Raises:
            ValueError: It was not told of every pair.
        """
        if self.similarity is None:
            return None
        found = np.asarray(self.similarity(ids), dtype=float)
        if found.shape != (len(ids), len(ids)):
            raise ValueError(
                f"similarity must return [tasks, tasks] = {(len(ids), len(ids))}, got {found.shape}."
            )
        return found


def _ask(known: Known[Any], id: Hashable, argument: str) -> Any:
    if callable(known):
        return known(id)
    if id not in known:
        raise ValueError(
            f"{argument} must know every task's id, but has no {id!r}. Add it, or pass str."
        )
    return known[id]
