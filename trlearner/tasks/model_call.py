"""Calling a model as its user does: inputs by name or one by one, predictions out of named outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trlearner.base.functional import pure_call
from trlearner.base.types import State
from trlearner.tasks.nested import Nested, as_data, raw

Call = Callable[[nn.Module, Any], Any]
"""``(model, x) -> output``; how a user calls a model."""


def run(
    model: nn.Module,
    state: State,
    x: Any,
    call: Call | None = None,
    output: str | int | None = None,
) -> Any:
    """A model's predictions of inputs, with other tensors in place of its own.

    Args:
        model: Is called.
        state: Tensors by the model's own names.
        x: A tensor, or `Nested`.
        call: As of `answer`.
        output: As of `answer`.

    Returns:
        A tensor ``[samples, ...]``, or `Nested`.
    """
    if call is not None:
        held = _Held(model, call)
        found = pure_call(held, {HELD + name: tensor for name, tensor in state.items()}, raw(x))
    elif isinstance(x, Nested):
        args, kwargs = _arguments(x)
        found = pure_call(model, state, *args, **kwargs)
    else:
        found = pure_call(model, state, x)
    return as_predictions(found, output)


def answer(
    model: nn.Module, x: Any, call: Call | None = None, output: str | int | None = None
) -> Any:
    """A model's predictions of inputs, with its own tensors.

    Args:
        model: Is called.
        x: A tensor, or `Nested`: a dict is passed by name, a tuple or list one by one.
        call: ``(model, x) -> output``, in place of that.
        output: The part of what comes out that holds the predictions; ``None`` for all of it.
    """
    if call is not None:
        return as_predictions(call(model, raw(x)), output)
    args, kwargs = _arguments(x)
    return as_predictions(model(*args, **kwargs), output)


HELD = "model."


class _Held(nn.Module):
    """A model together with how it is called."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self._call = call

    def forward(self, x: Any) -> Any:
        return self._call(self.model, x)


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = raw(x)
    if isinstance(given, Mapping):
        return (), dict(given)
    return (tuple(given), {}) if isinstance(given, (tuple, list)) else ((given,), {})


def as_predictions(found: Any, output: str | int | None = None) -> Any:
    """What a model returned, or a part of it, as a tensor or `Nested`.

    Raises:
        TypeError: It holds something else than tensors.
        ValueError: There is no such part.
    """
    if output is not None:
        found = _part(found, output)
    if isinstance(found, Tensor):
        return found
    found = as_data(found)
    odd = (
        [(p, t) for p, t in found.named() if not isinstance(t, Tensor)]
        if isinstance(found, Nested)
        else [("", found)]
    )
    if odd:
        path, value = odd[0]
        where = f" at {path}" if path else ""
        raise TypeError(
            f"the model must return predictions [samples, ...], a tensor or dicts, tuples and lists of "
            f"tensors, got {type(value).__name__}{where}. Name the part that holds the predictions, e.g. "
            'output="logits".'
        )
    return found


def _part(found: Any, output: str | int) -> Any:
    try:
        if isinstance(output, str) and not isinstance(found, Mapping):
            return getattr(found, output)
        return found[output]
    except (AttributeError, KeyError, IndexError, TypeError):
        names = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"output={output!r} names no part of what the model returns: {names}."
        ) from None
