"""Which layers are to blame: from the whole down to the innermost that fail."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from trlearner.diagnostics.doctor.explain import IN_PLACE
from trlearner.diagnostics.doctor.record import Node
from trlearner.diagnostics.doctor.trial import Patient, Trial, attempt


class Search:
    """One trial, taken down the tree of calls.

    A layer that passes is not looked into. One that fails is to blame only if it still does with
    the culprits below it replaced by stand-ins. So a healthy model costs one trial.

    Args:
        patient: Whose layers they are.
        trial: Which.
        broken: Layers that have no second derivative; their first may still be tried.
        hopeless: Layers that need not be tried, but what they call may be.
    """

    def __init__(
        self,
        patient: Patient,
        trial: Trial,
        broken: Collection[Node] = (),
        hopeless: Collection[Node] = (),
    ) -> None:
        self.found: dict[Node, Exception] = {}
        self._patient, self._trial = patient, trial
        self._broken, self._hopeless = set(broken), set(hopeless)
        self._seen: set[Node] = set()

    def over(self, *nodes: Node) -> dict[Node, Exception]:
        """The culprits at and below these nodes, and what torch said."""
        for node in nodes:
            self._look(node)
        return self.found

    def _look(self, node: Node) -> None:
        if node in self._seen:
            return
        self._seen.add(node)
        tried = node.complete and node not in self._hopeless
        error = self._try(node) if tried else None
        if tried and error is None and node not in self._broken:
            return
        before = len(self.found)
        for child in node.children:
            self._look(child)
        if error is not None and len(self.found) > before:
            error = self._try(node)
        if error is not None:
            self._blame(node, error)

    def _try(self, node: Node, shielded: Collection[Node] = ()) -> Exception | None:
        known = self._broken | self._hopeless | self.found.keys()
        absent = {n for n in known if n.module is not None and n is not node}
        once = node in self._broken
        return attempt(self._patient, node, self._trial, once, absent, set(shielded) - absent)

    def _blame(self, node: Node, error: Exception) -> None:
        """`node`, unless copies for a layer below that overwrites its inputs would help."""
        if re.search(IN_PLACE, str(error)):
            suspects = {n for n in _below(node) if n.overwrites}
            if suspects and self._try(node, shielded=suspects) is None:
                alone = {
                    n for n in suspects if self._try(node, shielded=suspects - {n}) is not None
                }
                self.found.update((n, error) for n in alone or suspects)
                return
        self.found[node] = error


def _below(node: Node, seen: set[Node] | None = None) -> Iterator[Node]:
    seen = set() if seen is None else seen
    for child in node.children:
        if child not in seen:
            seen.add(child)
            yield child
            yield from _below(child, seen)
