"""Modules as pure functions of an explicit state, one thread at a time; helpers for states and tensors."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, get_ident
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from trlearner.base.types import State

SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)
"""Layers that take one axis of their input for time."""

EPSILON = 1e-6
"""Keeps the cosine of a zero vector, and its gradient, finite."""
LARGE = 2.0**30
"""Vectors with larger entries are scaled down before they are squared."""

mixing: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Layers of these types that were found to take the samples' axis for time; `engines.coupling` finds them."""


def pure_call(module: nn.Module, state: State, *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)`` with `state` in place of its parameters and buffers.

    Neither the module nor `state` is changed: statistics that a forward would update (BatchNorm's
    running mean and its kin) are computed and discarded, other buffers are cloned. Another thread that runs
    the module, or a part of it, meanwhile is refused.

    Args:
        module: Any module.
        state: Tensors by the module's own names; what is missing is taken from the module.
        *args: What its forward takes.
        **kwargs: What it takes by name.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> pure_call(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, torch.ones(3, 2))
        tensor([[2.],
                [2.],
                [2.]])
    """
    given: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    modules = dict(module.named_modules())
    with OneThread(modules.values()), discarded_statistics(module):
        for prefix, one in modules.items():
            for name, tensor in (*one._parameters.items(), *one._buffers.items()):
                if tensor is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    value = state.get(first.setdefault(id(tensor), path), tensor)
                    given[path] = value.clone() if name in one._buffers else value
        # Ties are resolved above: torch would swap a module of two names twice, and restore once.
        return torch.func.functional_call(module, given, args, kwargs, tie_weights=False)


class Busy(RuntimeError):
    """Another thread runs the same modules."""


class OneThread:
    """While it is open, other threads that open one on any of these modules are refused.

    A pure call puts other tensors in place of a module's own until its forward is over. A second thread would
    compute with them, or take them for the module's. The same thread may open as many as it likes, and so may
    the thread in which autograd computes something again: the first one has left its forward by then.

    Args:
        modules: All of them, submodules included: two learners may share a part.

    Example:
        >>> with OneThread(nn.Linear(1, 1).modules()):
        ...     pass
    """

    __slots__ = ("_modules", "_taken")

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules
        self._taken: dict[int, int] = {}

    def __enter__(self) -> None:
        me = get_ident()
        taken = dict.fromkeys(map(id, self._modules), me)
        with _lock:
            if _running:
                if any(_running.get(key, me) != me for key in taken):
                    raise Busy(
                        "this learner or encoder is being run by another thread, which has put other "
                        "parameters in place of its own. Give each thread a copy, copy.deepcopy(learner), or "
                        "let the threads take turns with a threading.Lock around each meta-step."
                    )
                taken = {key: me for key in taken if key not in _running}
            _running.update(taken)
        self._taken = taken

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for key in self._taken:
            del _running[key]


_lock = Lock()
_running: dict[int, int] = {}
"""By the ids of modules, the thread that runs them."""


@contextmanager
def discarded_statistics(module: nn.Module) -> Iterator[None]:
    """Normalization layers in training mode use their batch's statistics and record nothing.

    A layer whose buffers are updated in place cannot run under ``vmap``; one that tracks nothing can.
    """
    layers = [
        m
        for m in module.modules()
        if isinstance(m, _NormBase) and m.training and m.track_running_stats
    ]
    # InstanceNorm records in whatever statistics it has, tracked or not.
    lent = [
        (m, {name: m._buffers[name] for name in ("running_mean", "running_var")})
        for m in layers
        if isinstance(m, _InstanceNorm)
    ]
    for layer in layers:
        layer.track_running_stats = False
    for layer, statistics in lent:
        layer._buffers.update(dict.fromkeys(statistics))
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
        for layer, statistics in lent:
            layer._buffers.update(statistics)


def couples_samples(module: nn.Module) -> bool:
    """Whether one sample's output depends on the others of its batch.

    True of BatchNorm that normalizes with its batch's own statistics, of embeddings with
    ``scale_grad_by_freq=True``, of the recurrent and attention layers in `mixing`, and of any module with
    a true attribute ``couples_samples`` (set it on a layer of yours that does so).
    """
    return any(map(couples, module.modules()))


def couples(layer: nn.Module) -> bool:
    """Whether this layer itself, apart from its children, couples samples; see `couples_samples`."""
    if isinstance(layer, _BatchNorm):
        return layer.training or layer.running_mean is None
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return layer.scale_grad_by_freq
    if isinstance(layer, SEQUENTIAL) and layer in mixing:
        return True
    return bool(getattr(layer, "couples_samples", False))


def check_statistics(module: nn.Module, name: str = "model") -> None:
    """Refuse BatchNorm in evaluation mode whose running statistics were never updated.

    Raises:
        ValueError: Naming the layers.
    """
    unset = [
        f"{name}.{path}".rstrip(".")
        for path, m in module.named_modules()
        if isinstance(m, _NormBase) and not m.training and _never_updated(m)
    ]
    if unset:
        raise ValueError(
            f"{', '.join(unset)}: evaluation mode needs running statistics, but these were never "
            "updated (meta-training discards such updates). Keep the model in training mode "
            "(.train()) to use each task's own batch statistics, build the layer with "
            "track_running_stats=False, or use GroupNorm."
        )


def _never_updated(layer: _NormBase) -> bool:
    mean, var, batches = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if not layer.track_running_stats or mean is None or var is None:
        return False
    # To read a value is to wait for a GPU: it is read once, and again when the statistics were written to.
    statistics = [t for t in (mean, var, batches) if t is not None]
    written = [(id(t), -1 if t.is_inference() else t._version) for t in statistics]
    if _updated.get(layer) == written:
        return False
    counted = batches is not None and int(batches) > 0
    # Weights saved without the counter still bring statistics of their own.
    if not counted and bool((mean == 0).all() and (var == 1).all()):
        return True
    _updated[layer] = written
    return False


_updated: weakref.WeakKeyDictionary[_NormBase, list[tuple[int, int]]] = weakref.WeakKeyDictionary()
"""Layers whose running statistics were seen to be updated, and how often these had been written to."""


def members(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers themselves, each by the first of its names."""
    modules, found = dict(module.named_modules()), {}
    with OneThread(modules.values()):
        for kind in ("_parameters", "_buffers"):
            seen: set[int] = set()
            for prefix, one in modules.items():
                for name, tensor in getattr(one, kind).items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name; without their graph where gradients are off."""
    return graph_as_wanted(members(module))


def trainable(module: nn.Module) -> list[str]:
    """The names of a module's parameters that are not frozen."""
    with OneThread(module.modules()):
        return [name for name, p in module.named_parameters() if p.requires_grad]


def graph_as_wanted(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name; without their graph where gradients are off."""
    if torch.is_grad_enabled():
        return found
    # A parameter that still waits for its width cannot be detached, nor does it carry a graph.
    return {name: t if is_lazy(t) else t.detach() for name, t in found.items()}


def below(prefix: str, state: State) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by what follows."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def precision(state: State) -> torch.dtype:
    """What whole numbers become before they are averaged: the finest of the state, at least single.

    Example:
        >>> precision({"weight": torch.ones(1).double(), "steps": torch.ones(1).long()})
        torch.float64
    """
    kinds = (t.dtype for t in state.values() if t.is_floating_point())
    return functools.reduce(torch.promote_types, kinds, torch.float32)


def take(values: Any, choice: Tensor) -> Any:
    """Some samples of each task: ``[tasks, samples, ...], [tasks, chosen] -> [tasks, chosen, ...]``."""
    return values[torch.arange(len(values), device=values.device)[:, None], choice]


def directions(vectors: Tensor) -> Tensor:
    """Vectors ``[..., features]`` of at least single precision at length 1: ``v * rsqrt(v.v + eps^2)``.

    Vectors that are not much longer than eps stay shorter, and a vector of zeros stays zero.
    """
    # Squares of larger entries would overflow, and a direction become zero.
    most = vectors.detach().abs().amax(-1, keepdim=True)
    vectors = vectors / (most / LARGE).clamp(min=1.0)
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + EPSILON**2)


def random_state_kept(x: Any) -> AbstractContextManager[None]:
    """Whatever is drawn inside, on the CPU or on the device of `x`, leaves no trace outside."""
    return torch.random.fork_rng(devices=[x.device] if x.is_cuda else [])


def random_state() -> list[Tensor]:
    """Where torch's global random generators stand, of the CPU and of every GPU."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def set_random_state(state: list[Tensor]) -> None:
    """Puts them back to where they stood."""
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1:])
