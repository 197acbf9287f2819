"""What a graph takes for granted, and so must be made anew for when it changes."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.warn import warn

Key = tuple[tuple[str, Hashable], ...]
IRRELEVANT = ("lam", "temperature", "planned_steps", "monitor")
"""Settings that no graph depends on: λ and the temperature are inputs of it."""
PURPOSE = ("engine", "gradients", "relation term", "purpose")
"""Facts by which graphs differ on purpose: training and validation have one each."""
PLAIN = (bool, int, float, str, type(None), enum.Enum, torch.dtype, torch.device)


def key(inputs: Mapping[str, Tensor], facts: Mapping[str, Hashable]) -> Key:
    """Of a graph's inputs their kinds, and of the facts their values.

    Args:
        inputs: Tensors by name.
        facts: What else the graph was made for, by the names that a report of a change uses.
    """
    return (*facts.items(), *((name, _kind(t)) for name, t in inputs.items()))


def settings(module: nn.Module) -> Hashable:
    """What a module's forward may depend on besides tensors."""
    found: list[Any] = []
    for m in module.modules():
        for name, value in m.__dict__.items():
            if name[0] == "_" or name in IRRELEVANT:
                continue
            if isinstance(value, PLAIN) or callable(value):
                found.append((name, value))
            elif isinstance(value, (tuple, list, dict)):
                found.append((name, repr(value)))
    return tuple(found)


def autocast(device: str) -> Hashable:
    """Whether and to what autocast casts."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)


def report_change(old: Iterable[Key], new: Key, kept: int) -> None:
    """Warns of what changed since the last key that served the same purpose."""
    now = dict(new)
    alike = [then for one in old if all((then := dict(one)).get(n) == now.get(n) for n in PURPOSE)]
    if not alike:
        return
    changed = [name for name in now if alike[-1].get(name) != now[name]]
    changed += [name for name in alike[-1] if name not in now]
    warn(
        f"the meta-step is traced and compiled anew, because this changed: {', '.join(changed)}. "
        f"At most {kept} graphs are kept; keep shapes and settings fixed, or pad tasks to one size."
    )


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad
