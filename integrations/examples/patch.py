"""Lines of ours in somebody else's script, without a copy of it: where they go, and how many they are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Edit:
    """Lines of ours at one line of a script.

    Attributes:
        at: A part of that line, which no other line has.
        lines: Ours, indented like that line.
        where: They follow it, precede it, or take its place.
    """

    at: str
    lines: tuple[str, ...]
    where: Literal["after", "before", "instead"] = "after"


def edited(source: str, edits: Sequence[Edit]) -> str:
    """The script with our lines.

    Raises:
        ValueError: A line is not found, or found twice: the script is of another version.
    """
    lines: list[list[str]] = [[line] for line in source.splitlines()]
    for edit in edits:
        number = line_of(source, edit.at)
        there = source.splitlines()[number]
        margin = there[: len(there) - len(there.lstrip())]
        ours = [margin + line for line in edit.lines]
        place = lines[number].index(there)
        begin = place + (edit.where == "after")
        lines[number][begin : place + (edit.where != "before")] = ours
    return "\n".join(line for group in lines for line in group) + "\n"


def line_of(source: str, part: str) -> int:
    """The number of the one line that has this part, from 0."""
    found = [i for i, line in enumerate(source.splitlines()) if part in line]
    if len(found) != 1:
        raise ValueError(
            f"exactly one line of the script should have {part!r}, and {len(found)} have. It is of another "
            "version than these edits."
        )
    return found[0]


@dataclass(frozen=True)
class Difference:
    """How one text differs from another.

    Attributes:
        added: Lines that are new.
        changed: Lines that were others before, or are gone.
        shown: These lines: ``+`` new, ``~`` in place of others.
    """

    added: int
    changed: int
    shown: tuple[str, ...]


def difference(before: Sequence[str], after: Sequence[str]) -> Difference:
    """Counted by what the two texts are, whatever edits led from one to the other."""
    added, changed, shown = 0, 0, list[str]()
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            both = min(b - a, d - c)
            added, changed = added + (d - c) - both, changed + (b - a)
            shown += [f"{'~' if i < both else '+'} {line}" for i, line in enumerate(after[c:d])]
    return Difference(added, changed, tuple(shown))


def part(source: str, begin: str, end: str) -> list[str]:
    """The lines from that with `begin` up to that with `end`."""
    return source.splitlines()[line_of(source, begin) : line_of(source, end)]
