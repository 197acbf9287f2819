"""Inner rates that differ by layer and by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trlearner.base.checks import shown

Rate = float | Sequence[float] | Mapping[str, float | Sequence[float]]
"""One rate, one a step, or either by the beginning of a parameter's name."""


def rates_of(rate: Rate, names: Sequence[str], prefix: str) -> dict[str, float | Sequence[float]]:
    """The rate of every parameter, by its name.

    Args:
        rate: As the user gave it.
        names: Of the parameters.
        prefix: What their names have in front of those that the user knows.

    Example:
        >>> rates_of({"": 0.1, "head": [0.2, 0.3]}, ["model.head.weight"], "model.")
        {'model.head.weight': [0.2, 0.3]}
    """
    if not isinstance(rate, Mapping):
        return dict.fromkeys(names, rate)
    keys = {
        name: max((k for k in rate if _below(name.removeprefix(prefix), k)), key=len)
        for name in names
    }
    return {name: rate[key] for name, key in keys.items()}


def check_rates(rate: Rate, names: Sequence[str]) -> None:
    """Refuse rates that leave a parameter without one, or are no positive number.

    Raises:
        ValueError: Naming the parameter or the value.
    """
    if not isinstance(rate, (int, float, Sequence, Mapping)) or isinstance(rate, (bool, str)):
        raise ValueError(
            f"lr must be a number, one a step, or a mapping to these, got {shown(rate)}."
        )
    if isinstance(rate, Mapping):
        left = [n for n in names if not any(_below(n, key) for key in rate)]
        if left:
            raise ValueError(
                f"lr gives no rate for {left}, only for names that begin with {sorted(rate)}. "
                'Add a default under the key "".'
            )
        unused = [key for key in rate if not any(_below(n, key) for n in names)]
        if unused:
            raise ValueError(
                f"lr has keys {unused}, but no parameter's name begins so: {list(names)}."
            )
    for value in rate.values() if isinstance(rate, Mapping) else [rate]:
        numbers = value if isinstance(value, Sequence) else [value]
        if not numbers or not all(_is_rate(v) for v in numbers):
            raise ValueError(f"lr must be finite and at least 0, got {value!r}.")


def _is_rate(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _below(name: str, key: str) -> bool:
    """Whether `key` is a whole part of the module path `name`: "1" is no part of "10.weight"."""
    return key in ("", name) or name.startswith(key + ".")
