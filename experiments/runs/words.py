"""The words of a command line, as values of a dataclass; what is wrong with them, in one line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import cache, partial
from typing import Any

from trlearner.experiments.data.setting import given

FRAME = "│╭╮╰╯─ \n"
"""What tyro draws around its errors."""


def parse(kind: Any, arguments: Sequence[str], prog: str, **more: Any) -> Any:
    """A dataclass out of a command line; with ``--help`` it ends the program.

    Args:
        kind: The dataclass.
        arguments: The words.
        prog: What help and errors call the command.
        more: As `tyro.cli` takes it.

    Raises:
        ValueError: The words are not what the dataclass has.
    """
    import tyro

    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, prog=prog, registry=_numbers(), **more)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_sentence(errors.getvalue())} {prog} --help says more.") from None


@cache
def _numbers() -> Any:
    """Numbers as Python reads them; tyro's own rule makes a 1 of 1.5."""
    from tyro.constructors import ConstructorRegistry

    registry = ConstructorRegistry()
    specs = {kind: _spec(kind) for kind in (int, float)}
    registry.primitive_rule(lambda info: specs.get(info.type))
    return registry


def _spec(kind: type) -> Any:
    from tyro.constructors import PrimitiveConstructorSpec

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=partial(_number, kind),
        is_instance=lambda value: type(value) in (int, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _number(kind: type, words: list[str]) -> Any:
    try:
        return kind(words[0])
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"expected {expected}, got {given(words[0])}") from None


def _sentence(box: str) -> str:
    """The first paragraph of an error in a box."""
    lines = [line.strip(FRAME) for line in box.splitlines()[1:]]
    text = " ".join(lines[: lines.index("")] if "" in lines else lines).strip()
    return text if text.endswith(".") else f"{text}."
