"""What a setting may be: one check for command lines, sweeps and files of settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}", re.ASCII)
"""The name of an option. It becomes a column of tables, so it is a word."""

LONGEST = 4096
"""Characters of a text, or entries of a list."""

EXACT = 2**53
"""Whole numbers up to here are the same as fractions and in JSON."""


class Range(NamedTuple):
    """Numbers that mean something.

    Attributes:
        least: The smallest.
        most: The largest.
        without: One end that is left out, if any.
    """

    least: float
    most: float
    without: float | None = None

    def __str__(self) -> str:
        end = "" if self.without is None else f" (without {self.without:g})"
        return f"from {_shown(self.least)} to {_shown(self.most)}{end}"


def check(name: str, value: Any, kind: Any, limits: Range | None = None) -> None:
    """Refuses a value that is of another kind, or that lies outside of its range.

    Args:
        name: Of the setting, for the error text.
        value: What was given.
        kind: A type as annotations have it: `int`, `float`, `bool`, `str`, ``Literal[...]``, ``int | None``
            or ``tuple[int, ...]``.
        limits: Of numbers.

    Raises:
        ValueError: The text names the setting, what was expected and what came.

    Example:
        >>> check("clip", 1, float, Range(0, 10))
        >>> check("clip", float("nan"), float, Range(0, 10))
        Traceback (most recent call last):
            ...
        ValueError: clip must be a number from 0 to 10, got nan.
    """
    if not _fits(value, kind, limits):
        raise ValueError(f"{name} must be {_words(kind, limits)}, got {given(value)}.")


def check_options(options: Any) -> None:
    """Refuses options whose names are no words, or whose values JSON could not keep.

    Raises:
        ValueError: It names the option.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"options must be names with values, got {given(options)}.")
    for name, value in options.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                "the name of an option must be a word of at most 40 letters, digits and _, "
                f"got {given(name)}."
            )
        if not _plain(value):
            raise ValueError(
                f"the option {name} must be a finite number, a text, true, false, none, or a list or dict "
                f"of these, got {given(value)}."
            )


def option(options: Mapping[str, Any], name: str, usual: Any, kind: Any, limits: Any = None) -> Any:
    """An option of a problem, checked; `usual` where it is not given.

    Raises:
        ValueError: As in `check`.
    """
    value = options.get(name, usual)
    check(f"the option {name}", value, kind, limits)
    return value


def given(value: Any) -> str:
    """How an error text shows a value: not at any length.

    Example:
        >>> given("x" * 200)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:78]}..."


def _fits(value: Any, kind: Any, limits: Range | None) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (Union, UnionType):
        return any(_fits(value, part, limits) for part in parts)
    if origin is tuple:
        return (
            isinstance(value, tuple | list)
            and len(value) <= LONGEST
            and all(_fits(one, parts[0], limits) for one in value)
        )
    if kind in (int, float):
        fits = isinstance(value, int if kind is int else (int, float))
        return fits and not isinstance(value, bool) and _within(value, limits)
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    return kind is Any or isinstance(value, get_origin(kind) or kind)


def _within(value: float, limits: Range | None) -> bool:
    least, most, without = limits or Range(-EXACT, EXACT)
    return least <= value <= most and value != without  # false for what is not a number


def _plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, bool | NoneType):
        return True
    if isinstance(value, int | float):
        return -EXACT <= value <= EXACT  # false for what is not a number
    if isinstance(value, str):
        return _fits(value, str, None)
    if depth > 3 or not isinstance(value, list | tuple | dict) or len(value) > LONGEST:
        return False
    if isinstance(value, dict):
        return all(_fits(k, str, None) and _plain(v, depth + 1) for k, v in value.items())
    return all(_plain(one, depth + 1) for one in value)


def _words(kind: Any, limits: Range | None) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(_words(part, limits) for part in parts)
    if origin is tuple:
        return f"a list, each {_words(parts[0], limits)}"
    words = {int: "a whole number", float: "a number", str: "a text", NoneType: "none"}
    words |= {bool: "true or false", dict: "names with values"}
    end = f" {limits}" if limits and kind in (int, float) else ""
    return words.get(origin or kind, str(kind)) + end


def _shown(number: float) -> str:
    return f"{number:g}" if abs(number) >= 1e6 or number % 1 else f"{number:.0f}"
