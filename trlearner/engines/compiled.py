"""Engine ``compiled``: a pure function of named tensors, from a graph.

``torch.compile`` refuses double backward. But a meta-step is a pure function of tensors, so it is
traced once as engine ``batched`` runs it, inner loops and outer gradient unrolled into one graph
without any autograd left, and Inductor compiles that. Engine ``traced`` runs the same graph without
a compiler, to see (and test) what was traced.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.types import LossFn, State
from trlearner.engines import batched, guard
from trlearner.engines.adapted import Adapted, Engine
from trlearner.engines.graph import Function, Graph, build
from trlearner.engines.settings import Settings, ignore, settings
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.nested import arranged, leaves
from trlearner.tasks.samples import Samples

ENGINE = replace(batched.ENGINE, name="compiled", graphs=True)
TRACED = replace(batched.ENGINE, name="traced", graphs=True)
LIMIT = 8
"""So many graphs are kept for each pair of learner and owner."""


def run(
    function: Function,
    inputs: dict[str, Tensor],
    engine: Engine,
    learner: nn.Module,
    owner: nn.Module,
    facts: Mapping[str, Hashable],
    reads: Mapping[str, Any],
) -> dict[str, Tensor]:
    """``function(inputs)``, from a graph that is made at the first call of its kind.

    Args:
        function: Pure. What it calls ``loss`` carries the gradient of the inputs that require one.
        inputs: Everything that may change from call to call, by name.
        engine: `ENGINE` or `TRACED`.
        learner: The graphs go with it.
        owner: As `learner`.
        facts: What else the function depends on, by the names that a report of a change uses.
        reads: Modules and functions that the function reads; their settings are facts as well.

    Raises:
        NotCompilable: The function cannot be traced or compiled, with the reason and what to do.
    """
    return _graph(function, inputs, engine, learner, owner, facts, reads)(inputs)


def adapt(
    engine: Engine,
    learner: Any,
    state: State,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Adapted:
    """As `trlearner.engines.adapted.adapt`, from a graph; where gradients are off."""
    if support.mask is not None:
        support = support.padded(round_up(support.x.shape[1]))
    inputs = {STATE + name: tensor for name, tensor in state.items()} | parts("support", support)

    def function(given: dict[str, Tensor]) -> dict[str, Tensor]:
        samples, now = samples_in("support", given, support), state_in(given)
        features = engine.embed(learner, now, samples.x, samples.mask)
        return dict(engine.adapt(learner, now, features, samples, loss_fn, steps))

    facts = {"ways": support.ways, "steps": steps}
    reads = {"settings of the learner": learner, "loss function": loss_fn}
    fast = run(function, inputs, engine, learner, learner, facts, reads)
    return Adapted(learner, state, fast, engine)


# ---- tensors of a step, by name ----------------------------------------------------------------

STATE = "state."


def parts(name: str, samples: Samples) -> dict[str, Tensor]:
    """The tensors of some samples."""
    found = {
        f"{name}.{part}{path}": leaf
        for part, value in (("x", samples.x), ("y", samples.y))
        for path, leaf in leaves(value)
    }
    return found if samples.mask is None else {**found, f"{name}.mask": samples.mask}


def samples_in(name: str, given: Mapping[str, Tensor], like: Samples) -> Samples:
    """The samples of which `parts` made tensors, in the structure of others."""
    x, y = (
        [given[f"{name}.{part}{path}"] for path, _ in leaves(value)]
        for part, value in (("x", like.x), ("y", like.y))
    )
    mask = given.get(f"{name}.mask")
    return Samples.unchecked(arranged(like.x, x), arranged(like.y, y), mask, like.ways)


def batch_in(batch: TaskBatch, given: Mapping[str, Tensor]) -> TaskBatch:
    """The batch with other tensors in it."""
    support = samples_in("support", given, batch.support)
    return batch.replace(support, samples_in("query", given, batch.query))


def state_in(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `STATE`, by what follows."""
    return {n.removeprefix(STATE): t for n, t in given.items() if n.startswith(STATE)}


def rounded(batch: TaskBatch) -> TaskBatch:
    """The batch with masked parts padded to sizes of which there are few, so that few graphs serve many."""
    if batch.support.mask is None and batch.query.mask is None:
        return batch
    support, query = (
        samples if samples.mask is None else samples.padded(round_up(samples.x.shape[1]))
        for samples in (batch.support, batch.query)
    )
    return batch.replace(support, query)


def round_up(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    unit: int = 1 << max(size.bit_length() - 2, 0)
    return -(-size // unit) * unit


# ---- graphs and their keys -----------------------------------------------------------------------


def _graph(
    function: Function,
    inputs: dict[str, Tensor],
    engine: Engine,
    learner: nn.Module,
    owner: nn.Module,
    facts: Mapping[str, Hashable],
    reads: Mapping[str, Any],
) -> Graph:
    """The graph of `function`, from the cache where there is one."""
    learns = torch.is_grad_enabled()
    devices = sorted({t.device.type for t in inputs.values()})

    def key_now() -> guard.Key:
        around = {
            "engine": engine.name,
            "gradients": learns,
            **facts,
            "autocast": tuple(map(guard.autocast, devices)),
            "default dtype": torch.get_default_dtype(),
        }
        return guard.key(inputs, around | {name: settings(root) for name, root in reads.items()})

    graphs = _graphs.setdefault(learner, weakref.WeakKeyDictionary()).setdefault(
        owner, OrderedDict()
    )
    key = key_now()
    graph = graphs.get(key)
    if graph is None:
        guard.report_change(graphs, key, LIMIT)
        trained = [n for n, t in inputs.items() if learns and t.requires_grad]
        known = guard.same_but_settings(graphs, key)
        graph = build(function, inputs, trained, engine.name, engine.name != TRACED.name, known)
        if _ignore_written(reads, key):
            key = key_now()
        for old in [k for k, kept in graphs.items() if kept is graph]:
            del graphs[old]
        graphs[key] = graph
        if len(graphs) > LIMIT:
            graphs.popitem(last=False)
    graphs.move_to_end(key)
    return graph


def _ignore_written(reads: Mapping[str, Any], before: guard.Key) -> bool:
    """Leaves out of later keys what the trace itself has changed, which would make every key a new one."""
    names: set[str] = set()
    then = dict(before)
    for name, root in reads.items():
        was = then[name]
        assert isinstance(was, Settings)
        written = settings(root).changed(was)
        if written:
            ignore(root, written)
            names.update(written)
    if names:
        guard.report_written(names)
    return bool(names)


_graphs: weakref.WeakKeyDictionary[
    nn.Module, weakref.WeakKeyDictionary[nn.Module, OrderedDict[guard.Key, Graph]]
] = weakref.WeakKeyDictionary()
