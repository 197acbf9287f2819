"""Engine ``compiled``: a whole meta-step, outer gradient included, as one graph.

``torch.compile`` refuses double backward. But a meta-step is a pure function of tensors, so it is
traced once as engine ``batched`` runs it, inner loops and outer gradient unrolled into one graph
without any autograd left, and Inductor compiles that. Engine ``traced`` runs the same graph without
a compiler, to see (and test) what was traced.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.batch import TaskBatch
from trlearner.engines import batched, guard
from trlearner.engines.graph import Function, Graph, build
from trlearner.engines.settings import Settings, ignore, settings
from trlearner.functional import precision
from trlearner.output import Draws, Output
from trlearner.samples import Samples
from trlearner.seam import Engine
from trlearner.types import Fast, LossFn, State

ENGINE = replace(batched.ENGINE, name="compiled")
TRACED = replace(batched.ENGINE, name="traced")
NAMES = (ENGINE.name, TRACED.name)
LIMIT = 8
"""So many graphs are kept for each pair of learner and regularizer."""
PAYS = 5000
"""From so many meta-steps on, compiling pays. Both what it costs and what it saves grow with the number
of operations: 15 to 25 ms each to compile, some 6 µs each in every step."""

Step = Callable[[Engine, Any, State, TaskBatch, Draws], Output]


def run(
    step: Step,
    owner: nn.Module,
    engine: Engine,
    learner: nn.Module,
    state: State,
    batch: TaskBatch,
    draws: Draws,
    reads: Any,
) -> Output:
    """`step`, from a graph that is traced at the first call of its kind.

    Where tasks are masked, their sizes are rounded up, so that few graphs serve many sizes.

    Args:
        step: The pure meta-step.
        owner: Whose step it is; its graphs go with it.
        engine: `ENGINE` or `TRACED`.
        learner: As `step` takes it.
        state: As `step` takes it.
        batch: As `step` takes it.
        draws: As `step` takes it; λ and the temperature may change without a new graph.
        reads: The module or function that the step reads besides the learner.

    Raises:
        NotCompilable: The step cannot be traced or compiled, with the reason and what to do.
    """
    queries = batch.query.x.shape[1]
    batch, draws = _rounded(batch, draws)
    inputs = _flatten(state, batch, draws)
    facts = {"relation term": draws.related, "settings of the regularizer": reads}

    def function(given: dict[str, Tensor]) -> dict[str, Tensor]:
        out = step(engine, learner, _state(given), *_unflatten(batch, draws, given))
        found = {name: getattr(out, name) for name in OUTPUTS}
        return {name: t for name, t in found.items() if t is not None}

    found = _graph(function, owner, engine, learner, inputs, batch.support, facts)(inputs)
    if found["predictions"].shape[1] > queries:
        found["predictions"] = found["predictions"][:, :queries]
    return Output(**{name: found.get(name) for name in OUTPUTS}, engine=engine.name)  # type: ignore[arg-type]


def adapt(
    engine: Engine,
    learner: Any,
    state: State,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    """What `Engine.embed` and then `Engine.adapt` return, from a graph; where gradients are off.

    Args:
        engine: `ENGINE` or `TRACED`.
        learner: Adapts.
        state: As `Engine.adapt` takes it.
        support: As `Engine.adapt` takes it; where it is masked, its size is rounded up.
        loss_fn: As `Engine.adapt` takes it.
        steps: As `Engine.adapt` takes it.
    """
    if support.mask is not None:
        support = support.padded(_round_up(support.x.shape[1]))
    inputs = {STATE + name: tensor for name, tensor in state.items()} | _parts("support", support)
    facts = {"steps": steps, "loss function": loss_fn}

    def function(given: dict[str, Tensor]) -> dict[str, Tensor]:
        samples, now = _samples("support", given, support.ways), _state(given)
        features = engine.embed(learner, now, samples.x, samples.mask)
        return dict(engine.adapt(learner, now, features, samples, loss_fn, steps))

    return _graph(function, learner, engine, learner, inputs, support, facts)(inputs)


def evaluate(
    function: Callable[[State, TaskBatch, dict[str, Tensor]], dict[str, Tensor]],
    engine: Engine,
    learner: nn.Module,
    state: State,
    batch: TaskBatch,
    more: dict[str, Tensor],
    facts: dict[str, Hashable],
) -> dict[str, Tensor]:
    """``function(state, batch, more)`` from a graph, without gradients; masked sizes are rounded up.

    Args:
        function: Pure; what it returns has no graph.
        engine: `ENGINE` or `TRACED`.
        learner: Whose graphs they are.
        state: By name.
        batch: The tasks.
        more: Further tensors by name.
        facts: What else the function depends on.
    """
    batch, _ = _rounded(batch, Draws(0.0, 1.0, False, None))
    inputs = {STATE + name: tensor for name, tensor in state.items()} | more
    inputs |= _parts("support", batch.support) | _parts("query", batch.query)

    def flat(given: dict[str, Tensor]) -> dict[str, Tensor]:
        support, query = (_samples(part, given, batch.ways) for part in ("support", "query"))
        tasks = batch.replace(support, query)
        return function(_state(given), tasks, {name: given[name] for name in more})

    with torch.no_grad():
        return _graph(flat, learner, engine, learner, inputs, batch.support, facts)(inputs)


OUTPUTS = tuple(field.name for field in fields(Output) if field.name != "engine")
STATE = "state."


def _graph(
    function: Function,
    owner: nn.Module,
    engine: Engine,
    learner: nn.Module,
    inputs: dict[str, Tensor],
    samples: Samples,
    facts: dict[str, Hashable],
) -> Graph:
    """The graph of `function`, from the cache where there is one."""
    learns = torch.is_grad_enabled()
    read = {"settings of the learner": learner, **{n: v for n, v in facts.items() if callable(v)}}

    def key_now() -> guard.Key:
        around = {
            "engine": engine.name,
            "gradients": learns,
            **facts,
            "ways": samples.ways,
            "autocast": guard.autocast(samples.x.device.type),
            "default dtype": torch.get_default_dtype(),
        }
        return guard.key(inputs, around | {name: settings(root) for name, root in read.items()})

    graphs = _graphs.setdefault(learner, weakref.WeakKeyDictionary()).setdefault(
        owner, OrderedDict()
    )
    key = key_now()
    graph = graphs.get(key)
    if graph is None:
        guard.report_change(graphs, key, LIMIT)
        trained = [n for n, t in inputs.items() if learns and t.requires_grad]
        known = guard.same_but_settings(graphs, key)
        graph = build(function, inputs, trained, engine.name, engine.name != "traced", known)
        if _ignore_written(read, key):
            key = key_now()
        for old in [k for k, kept in graphs.items() if kept is graph]:
            del graphs[old]
        graphs[key] = graph
        if len(graphs) > LIMIT:
            graphs.popitem(last=False)
    graphs.move_to_end(key)
    return graph


def _ignore_written(read: dict[str, Any], before: guard.Key) -> bool:
    """Leaves out of later keys what the trace itself has changed, which would make every key a new one."""
    names: set[str] = set()
    then = dict(before)
    for name, root in read.items():
        was = then[name]
        assert isinstance(was, Settings)
        written = settings(root).changed(was)
        if written:
            ignore(root, written)
            names.update(written)
    if names:
        guard.report_written(names)
    return bool(names)


def _flatten(state: State, batch: TaskBatch, draws: Draws) -> dict[str, Tensor]:
    """Everything that may change from step to step, by name."""
    query = batch.query.x
    found = {STATE + name: tensor for name, tensor in state.items()}
    found |= _parts("support", batch.support) | _parts("query", batch.query)
    if draws.related:
        # Tokens have no precision of their own; then it is that of the parameters.
        dtype = query.dtype if query.is_floating_point() else precision(state)
        for name in ("lam", "temperature"):
            value = getattr(draws, name)
            if isinstance(value, Tensor):  # not a copy: a temperature may be learned
                found[name] = value.to(query.device, dtype)
            else:  # `torch.tensor` would copy from the CPU, and wait for a GPU
                found[name] = torch.full((), value, dtype=dtype, device=query.device)
    if draws.queries is not None:
        found["chosen queries"] = draws.queries
    if draws.task_weights is not None:
        found["task weights"] = draws.task_weights
    return found


def _unflatten(batch: TaskBatch, draws: Draws, given: dict[str, Tensor]) -> tuple[TaskBatch, Draws]:
    support, query = (_samples(part, given, batch.ways) for part in ("support", "query"))
    lam, temperature = given.get("lam", draws.lam), given.get("temperature", draws.temperature)
    queries, weights = given.get("chosen queries"), given.get("task weights")
    return batch.replace(support, query), Draws(lam, temperature, draws.related, queries, weights)


def _parts(name: str, samples: Samples) -> dict[str, Tensor]:
    parts = {f"{name}.x": samples.x, f"{name}.y": samples.y}
    return parts if samples.mask is None else {**parts, f"{name}.mask": samples.mask}


def _samples(name: str, given: dict[str, Tensor], ways: int | None) -> Samples:
    return Samples.unchecked(
        given[f"{name}.x"], given[f"{name}.y"], given.get(f"{name}.mask"), ways
    )


def _state(given: dict[str, Tensor]) -> State:
    return {n.removeprefix(STATE): t for n, t in given.items() if n.startswith(STATE)}


def _rounded(batch: TaskBatch, draws: Draws) -> tuple[TaskBatch, Draws]:
    """Masked parts padded to sizes of which there are few."""
    if batch.support.mask is None and batch.query.mask is None:
        return batch, draws
    before = batch.query.x.shape[1]
    support, query = (
        samples if samples.mask is None else samples.padded(_round_up(samples.x.shape[1]))
        for samples in (batch.support, batch.query)
    )
    if draws.queries is not None and query.x.shape[1] > before:
        # A choice may be rounded as well: what is added points to padding.
        missing = _round_up(draws.queries.shape[1]) - draws.queries.shape[1]
        padding = draws.queries.new_full((len(batch), missing), before)
        draws = replace(draws, queries=torch.cat([draws.queries, padding], 1))
    return batch.replace(support, query), draws


def _round_up(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    unit: int = 1 << max(size.bit_length() - 2, 0)
    return -(-size // unit) * unit


_graphs: weakref.WeakKeyDictionary[
    nn.Module, weakref.WeakKeyDictionary[nn.Module, OrderedDict[guard.Key, Graph]]
] = weakref.WeakKeyDictionary()
