"""Arrays out of pickles, without running anything that is in them.

A pickle is a program: `pickle.load` calls whatever it names. Here it can name only what numpy needs to
put an array together, and gets functions and classes of our own for that.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DAMAGE = (
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError),
    *(ArithmeticError, AttributeError, MemoryError),
)
"""What `pickle` raises over bytes that are no pickle, or not all of one."""


def load_arrays(path: Path) -> Any:
    """What a pickle holds, if that is numbers, texts, arrays, and lists, tuples and dicts of them.

    Pickles of Python 2 are read with their bytes as latin-1, as numpy wants it.

    Raises:
        ValueError: It names anything else, or is damaged; the text says what.
    """
    try:
        with Path(path).open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except DAMAGE as error:
        raise ValueError(
            f"{path} must be a pickle of numpy arrays, lists and numbers: {error}. It was not loaded."
        ) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 has moved these from numpy.core to numpy._core.
        allowed = ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return allowed


class _Type:
    """Stands for a dtype. A real one could be told, by its `__setstate__`, to take bytes for pointers."""

    def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:
        if not re.fullmatch(r"[|<>=]?[?biufcSUO]\d*", str(name)):
            raise pickle.UnpicklingError(f"it asks for the dtype {name!r}, which is no plain one")
        self.real = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Of all that a dtype's state says, the order of bytes: the rest is for records."""
        if state[1] in ("<", ">"):
            self.real = self.real.newbyteorder(state[1])

    def number(self, data: bytes | str) -> Any:
        """As ``numpy.core.multiarray.scalar`` makes it."""
        raw = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(raw, self.real, count=1)[0]


class _Array(np.ndarray):
    """An array that is filled with a real dtype."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        super().__setstate__((1, shape, kind.real, fortran, data))


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, which the pickle fills in its next step."""
    return np.empty(0, "u1").view(_Array)


def _frombuffer(data: Any, kind: _Type, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(data, kind.real).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes for readers of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}, which no array needs")
    return text.encode("latin1")


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _Type.number,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "dtype"): _Type,
    # An argument of _reconstruct, and no more: called, it would make arrays of any memory.
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _encode,
}
"""All that a pickle may name."""
