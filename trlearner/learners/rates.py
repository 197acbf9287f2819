"""Inner rates that differ by layer and by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trlearner.checks import shown

Rate = float | Sequence[float] | Mapping[str, float | Sequence[float]]
"""One rate, one a step, or either by the beginning of a parameter's name."""


def rate_at(rate: Rate, name: str, step: int) -> float:
    """The rate of parameter `name` at inner step `step`; steps beyond the last repeat it.

    Example:
        >>> rate_at({"": 0.1, "head": [0.2, 0.3]}, "head.weight", 7)
        0.3
    """
    if isinstance(rate, Mapping):
        rate = rate[max((key for key in rate if _below(name, key)), key=len)]
    if isinstance(rate, Sequence):
        rate = rate[min(step, len(rate) - 1)]
    return rate


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
