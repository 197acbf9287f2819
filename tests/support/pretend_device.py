"""A pretend device, to find on a CPU what would fail on a GPU, or wait for one.

Its tensors are kept on the CPU, but torch takes them for those of another device. As on a GPU, they mix
with no tensor of the CPU that has axes. `waits` counts what would make Python wait for a GPU: values that
are read, shapes that depend on values, and copies from the CPU that are not ``non_blocking``.

To support devices written in Python, torch changes the whole process. So this module is imported in a
process of its own, which `test_devices.py` starts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

waits: Counter[str] = Counter()
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("pretend", backend_module=_Module())
torch.__future__.set_overwrite_module_params_on_conversion(True)
DEVICE = torch.device("pretend", 0)


class Away(Tensor):
    """A tensor of the pretend device; `held` is where its values are."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), dtype=held.dtype, device=DEVICE, **layout
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        waits["tolist"] += 1
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    name, tensors = func._schema.name, _tensors((args, kwargs))
    here = [t for t in tensors if not isinstance(t, Away)]
    to_cpu = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    _check(name, args, tensors, here)
    _count(name, args, kwargs, here, to_cpu)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held_args, held_kwargs = tree_map_only(Away, lambda t: t.held, (args, kwargs))
    found = func(*held_args, **held_kwargs)
    if to_cpu or (name == "aten::copy_" and here and here[0] is args[0]):
        return found
    known = {id(t.held): t for t in tensors if isinstance(t, Away)}
    return tree_map_only(Tensor, lambda t: known.get(id(t)) if id(t) in known else Away(t), found)


def _check(name: str, args: Any, tensors: list[Tensor], here: list[Tensor]) -> None:
    """Refuse what a GPU refuses."""
    if name in INDEXING:
        assert isinstance(args[0], Away), f"{name}: positions on the device index a CPU tensor"
    elif name not in COPIES and here and len(here) < len(tensors):
        shapes = [list(t.shape) for t in here]
        assert all(t.ndim == 0 for t in here), f"{name}: CPU tensors {shapes} meet the device's"


def _count(name: str, args: Any, kwargs: Any, here: list[Tensor], to_cpu: bool) -> None:
    """Counts what waits."""
    blocking = not (kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,)))
    if name in READS or (name in COPIES and (to_cpu or (here and blocking))):
        waits[name] += 1
    if name in INDEXING:
        by = _tensors(args[1])
        if any(t.dtype == torch.bool or not isinstance(t, Away) for t in by):
            waits[name] += 1


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


_library = torch.library.Library("_", "IMPL")
_library.fallback(_run, "PrivateUse1")
