"""What an argument must be: one small check for each kind, and one wording for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 40
"""Letters of a wrong value that an error text shows."""


def shown(value: object) -> str:
    """A value as error texts show it: tensors by their shape, anything else shortened."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype} on {value.device}"
    text = repr(value)
    return text if len(text) <= MOST else f"{type(value).__name__} {text[: MOST - 3]}..."


def check_whole(name: str, value: Any, least: int | None = 1, optional: bool = False) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        ValueError: Naming the argument.
    """
    if value is None and optional:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        also = ", or None" if optional else ""
        raise ValueError(f"{name} must be a whole number{bound}{also}, got {shown(value)}.")


def check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> None:
    """Refuse what is no finite number from `least` to `most` and above `above`.

    Raises:
        ValueError: Naming the argument.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and least <= value <= most and value > above):
        bounds = [f"of at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (
            above > -math.inf
        )
        bounds += [f"of at most {most:g}"] * (most < math.inf)
        text = " and ".join(bounds)
        raise ValueError(
            f"{name} must be a finite number{text and f' {text}'}, got {shown(value)}."
        )


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false: any other text or number would pass for one of them.

    Raises:
        TypeError: Naming the argument.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of some names.

    Raises:
        ValueError: Naming the argument and the names.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {shown(value)}.")


def check_function(name: str, value: Any, takes: str, optional: bool = False) -> None:
    """Refuse what cannot be called.

    Args:
        name: Of the argument.
        value: What was given.
        takes: What it is called with and returns.
        optional: Whether ``None`` will do.

    Raises:
        TypeError: Naming the argument.
    """
    if not (callable(value) or (optional and value is None)):
        raise TypeError(f"{name} must be a function {takes}, got {shown(value)}.")


def check_loss_fn(value: Any, optional: bool = False) -> None:
    """Refuse what is no loss.

    Raises:
        TypeError: Saying what a loss is.
    """
    check_function("loss_fn", value, "(predictions, targets) -> scalar", optional)


def check_instance(name: str, value: Any, kind: type, hint: str, optional: bool = False) -> None:
    """Refuse what is not of a kind.

    Args:
        name: Of the argument.
        value: What was given.
        kind: What it must be.
        hint: How to come by one.
        optional: Whether ``None`` will do.

    Raises:
        TypeError: Naming the argument.
    """
    if not (isinstance(value, kind) or (optional and value is None)):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, got {shown(value)}. {hint}")


def check_generator(value: Any) -> None:
    """Refuse what draws no random numbers.

    Raises:
        TypeError: Saying how to make a generator.
    """
    hint = "Pass torch.Generator().manual_seed(0), or leave it out."
    check_instance("generator", value, torch.Generator, hint, optional=True)


def check_tensor(name: str, value: Any, axes: str) -> None:
    """Refuse what is no tensor of these axes; a last axis ``...`` stands for any number.

    Raises:
        TypeError: It is no tensor.
        ValueError: It has other axes.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor [{axes}], got {shown(value)}. Convert it first.")
    names = axes.split(", ")
    least = len(names) - (names[-1] == "...")
    if value.ndim < least or (value.ndim > least and names[-1] != "..."):
        raise ValueError(f"{name} must be [{axes}], got {shown(value)}.")
