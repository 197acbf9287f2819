"""How settings and numbers are written in tables and plots."""

from __future__ import annotations

import math
from typing import Any

from trlearner.experiments.reporting.study import PERCENT

MISSING = "—"

HUGE = 1e6
"""From here on numbers are written with a power of ten."""

NAMES = {
    "lam": "λ",
    "maml": "MAML",
    "fomaml": "FOMAML",
    "metasgd": "MetaSGD",
    "anil": "ANIL",
    "tnet": "T-Net",
    "protonet": "ProtoNet",
    "bayes-head": "BayesHead",
    "mse": "MSE",
    "r2": "R²",
}


def name(word: Any) -> str:
    """A setting or one of its values.

    Example:
        >>> name("lam"), name("inner_steps"), name(0.1), name(None), name("options.omega")
        ('λ', 'inner steps', '0.1', 'none', 'omega')
    """
    if word is None:
        return "none"
    if isinstance(word, float):
        return f"{word:g}"
    text = str(word)
    return NAMES.get(text, text.removeprefix("options.").replace("_", " "))


def metric_name(metric: str) -> str:
    """With its unit.

    Example:
        >>> metric_name("accuracy"), metric_name("mse"), metric_name("")
        ('accuracy (%)', 'MSE', 'metric')
    """
    unit = " (%)" if metric in PERCENT else ""
    return f"{name(metric) or 'metric'}{unit}"


def number(mean: float, half_width: float | None = None, sign: bool = False) -> str:
    """With as many digits as the interval deserves: two of its own.

    Args:
        mean: In the middle.
        half_width: Of its interval, if there is one.
        sign: Whether a plus is written, too.

    Example:
        >>> number(0.41234, 0.0132), number(0.41234), number(-0.03, 0.0651, sign=True)
        ('0.412 ± 0.013', '0.412', '−0.030 ± 0.065')
        >>> number(float("nan")), number(1234.5, 210.0), number(63.2513, 1.04)
        ('diverged', '1234 ± 210', '63.3 ± 1.0')
        >>> number(3.39e15, 4.31e16)
        '3.4e15 ± 4.3e16'
    """
    if not math.isfinite(mean):
        return "diverged"
    plus = "+" if sign else ""
    if max(abs(mean), half_width or 0.0) >= HUGE:
        parts = [f"{mean:{plus}.1e}", *([f"{half_width:.1e}"] if half_width else [])]
        return _minus(" ± ".join(part.replace("e+", "e") for part in parts))
    if half_width:
        digits = _digits(half_width, 2)
        return _minus(f"{mean:{plus}.{digits}f} ± {half_width:.{digits}f}")
    exact = "" if half_width is None else " ± 0"
    return _minus(f"{mean:{plus}.{_digits(mean, 3)}f}{exact}")


def _digits(value: float, significant: int) -> int:
    """So many decimals show so many significant digits."""
    rounded = float(f"{abs(value):.{significant - 1}e}")  # 0.00996 has its first digit at 0.01
    power = math.floor(math.log10(rounded)) if rounded else 0
    return min(8, max(0, significant - 1 - power))


def _minus(text: str) -> str:
    return text.replace("-", "−")
