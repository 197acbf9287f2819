"""Arrays out of pickles, without running anything that is in them.

A pickle is a program: `pickle.load` calls whatever it names. Here it may name only what numpy needs to put
an array together. Our own code answers in numpy's place, and checks every length before it makes an array.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHARING = 100
"""A pickle can refer to a list again and again. Written out, it may grow by this factor over its file."""

DEEPEST = 32
"""Lists in lists, at most; also the dimensions of an array."""


class UnsafePickle(ValueError):
    """A pickle that is damaged, or that holds more than numbers, texts and numeric arrays."""


def load_arrays(path: Path) -> Any:
    """What a pickle holds, if that is numbers, texts, numeric arrays, and lists, tuples and dicts of them.

    Pickles of Python 2 are read with their bytes as latin-1, as numpy wants it.

    Raises:
        UnsafePickle: The file holds anything else, or is damaged. It is a `ValueError`.
    """
    return loads(Path(path).read_bytes(), str(path))


def loads(content: bytes, name: str) -> Any:
    """As `load_arrays`, from bytes; errors call them by a name."""
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        return _Plain(SHARING * len(content)).of(loaded)
    except Exception as error:  # damaged bytes raise almost anything
        raise UnsafePickle(
            f"{name} must be a pickle of numeric numpy arrays, lists and numbers: "
            f"{str(error) or type(error).__name__}. It was not loaded."
        ) from None


class _Function:
    """Stands for a function that a pickle names. It has no attributes, so a pickle cannot change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def call(self, arguments: Any) -> Any:
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls a function with something else than a tuple")
        return self._call(*arguments)


class _Type:
    """Stands for a dtype; numpy's own one would take a state unchecked."""

    __slots__ = ("real",)

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not re.fullmatch(r"[|<>=]?(b1|\?|[iu][1248]|f[248])", str(name), re.ASCII):
            raise pickle.UnpicklingError(
                f"it asks for the dtype {name!r}, which is no plain number"
            )
        self.real = np.dtype(str(name))

    def build(self, state: Any) -> None:
        """Of all that a dtype's state says, the order of bytes: the rest is for records."""
        if type(state) is tuple and len(state) > 1 and state[1] in ("<", ">"):
            self.real = self.real.newbyteorder(state[1])


class _Array:
    """Stands for an array until the pickle says what is in it."""

    __slots__ = ("real",)

    def __init__(self) -> None:
        self.real = np.empty(0, "u1")

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise pickle.UnpicklingError("it fills an array with something else than five values")
        _, shape, kind, fortran, data = state
        self.real = _array(data, kind, shape, "F" if fortran else "C")


def _array(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """An array of its own memory, whose bytes are as many as its shape says."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes) or not isinstance(kind, _Type):
        raise pickle.UnpicklingError("it fills an array with something else than bytes of a dtype")
    shape = (shape,) if type(shape) is int else shape
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"it gives an array the shape {shape!r:.60}")
    needed = math.prod(shape) * kind.real.itemsize
    if len(shape) > DEEPEST or len(raw) != needed or order not in ("C", "F"):
        raise pickle.UnpicklingError(
            f"an array of the shape {shape!r:.60} needs {needed} bytes in the order C or F, "
            f"got {len(raw)} bytes in the order {order!r:.20}"
        )
    if kind.real == np.bool_:  # a byte that is neither 0 nor 1 is no valid boolean
        return (np.frombuffer(raw, "u1") != 0).reshape(shape, order=order)
    return np.frombuffer(raw, kind.real).reshape(shape, order=order).copy("K")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    """An empty array, which the pickle fills in its next step."""
    return _Array()


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.real = _array(data, kind, shape, order)
    return array


def _scalar(kind: Any, data: Any) -> Any:
    return _array(data, kind, (1,), "C")[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes for readers of Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}, which no array needs")
    return text.encode("latin1")


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Function(_frombuffer),
    ("numpy", "dtype"): _Function(_Type),
    # An argument of _reconstruct, and no more: called, it would make arrays of any memory.
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _Function(_encode),
}
"""All that a pickle may name."""

REFUSED = (
    *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
    *("FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"),
)
"""Instructions that make objects, or that need more than the file."""


class _Unpickler(pickle._Unpickler):
    """In Python, because the one in C takes as much memory as a number in the file says."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 has moved these from numpy.core to numpy._core.
        allowed = ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return allowed

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(function) is not _Function:
            raise pickle.UnpicklingError(f"it calls {function!r:.60}, which is no function")
        self.stack[-1] = function.call(arguments)

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if not isinstance(built, _Type | _Array):
            raise pickle.UnpicklingError(f"it changes the inside of a {type(built).__name__}")
        built.build(state)

    def _bytearray(self) -> None:
        # pickle's own would first fill as much memory as the file asks for.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(_pairs(items)))

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError("it sets a value by key outside of a dict")
        self.stack[-1].update(_pairs(items))

    def _additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError("it adds to something else than a set")
        self.stack[-1].update(map(_key, items))

    dispatch = {
        code: function
        for code, function in pickle._Unpickler.dispatch.items()
        if code not in {getattr(pickle, name)[0] for name in REFUSED}
    } | {
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.DICT[0]: _dict,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.ADDITEMS[0]: _additems,
    }


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        yield _key(key), value


def _key(key: Any) -> Any:
    """The hash of nested tuples could take for ever, so keys are texts or whole numbers."""
    if not isinstance(key, str | bytes | int | np.integer):
        raise pickle.UnpicklingError(f"it has a key of the type {type(key).__name__}")
    return key


class _Plain:
    """Puts real arrays in the place of what stands for them.

    Args:
        budget: How many numbers, texts and lists there may be in all.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def of(self, value: Any, depth: int = 0) -> Any:
        """The same, without anything of ours in it."""
        real = value.real if isinstance(value, _Array) else value
        self.budget -= 1 + (real.size if isinstance(real, np.ndarray) else 0)
        if self.budget < 0 or depth > DEEPEST:
            raise ValueError("its lists are nested too deeply, or hold each other too often")
        if isinstance(real, list | tuple):
            return type(real)(self.of(one, depth + 1) for one in real)
        if isinstance(real, dict):
            return {key: self.of(one, depth + 1) for key, one in real.items()}
        if isinstance(real, _Type | _Function):
            raise ValueError("it holds a dtype or a function by itself")
        return real
