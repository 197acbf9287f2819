"""What a graph takes for granted, and so must be made anew for when it changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trlearner.base.warn import warn
from trlearner.engines.settings import Settings

T = TypeVar("T")
Key = tuple[tuple[str, Hashable], ...]
PURPOSE = ("engine", "gradients", "relation term", "purpose")
"""Facts by which graphs differ on purpose: training and validation have one each."""


def key(inputs: Mapping[str, Tensor], facts: Mapping[str, Hashable]) -> Key:
    """Of a graph's inputs their kinds, and of the facts their values.

    Args:
        inputs: Tensors by name.
        facts: What else the graph was made for, by the names that a report of a change uses.
    """
    return (*facts.items(), *((name, _kind(t)) for name, t in inputs.items()))


def autocast(device: str) -> Hashable:
    """Whether and to what autocast casts."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)


def same_but_settings(old: Mapping[Key, T], new: Key) -> list[T]:
    """What was kept under keys that differ from `new` in settings only."""
    rest = _without_settings(new)
    return [kept for one, kept in old.items() if _without_settings(one) == rest]


def report_change(old: Iterable[Key], new: Key, kept: int) -> None:
    """Warns of what changed since the last key that served the same purpose."""
    now = dict(new)
    alike = [then for one in old if all((then := dict(one)).get(n) == now.get(n) for n in PURPOSE)]
    if not alike:
        return
    then = alike[-1]
    changed = [
        _named(name, then.get(name), now[name]) for name in now if then.get(name) != now[name]
    ]
    changed += [name for name in then if name not in now]
    of_settings = any(isinstance(now.get(n), Settings) and then.get(n) != now[n] for n in now)
    warn(
        "the meta-step is traced anew, and compiled where that gives another graph, because this changed: "
        f"{', '.join(changed)}. At most {kept} graphs are kept; keep shapes and settings fixed, or pad tasks "
        f"to one size.{OUTSIDE if of_settings else ''}"
    )


def report_written(names: Iterable[str]) -> None:
    """Warns of what running a step has set."""
    warn(
        f"tracing the model and the loss changed {_few(sorted(names))}. A graph runs no Python: later steps "
        "will neither change nor read it. If a prediction depends on it, keep it in a buffer or use "
        f"engine='batched'.{OUTSIDE}"
    )


OUTSIDE = (
    " An attribute that no prediction depends on can be left out: name it in its class, e.g. "
    "outside_graph = ('calls',)."
)


def _named(name: str, then: Hashable, now: Hashable) -> str:
    """The name of a fact; of settings with what differs."""
    if isinstance(then, Settings) and isinstance(now, Settings):
        return f"{name} ({_few(now.changed(then))})"
    return name


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _without_settings(one: Key) -> Key:
    return tuple((name, value) for name, value in one if not isinstance(value, Settings))


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad
