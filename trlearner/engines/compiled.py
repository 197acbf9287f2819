"""Engine ``compiled``: a whole meta-step, outer gradient included, as one graph.

``torch.compile`` refuses double backward. But a meta-step is a pure function of tensors, so it is
traced once as engine ``batched`` runs it, inner loops and outer gradient unrolled into one graph
without any autograd left, and Inductor compiles that. Engine ``traced`` runs the same graph without
a compiler, to see (and test) what was traced.
"""

from __future__ import annotations

import sys
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from trlearner.batch import TaskBatch
from trlearner.engines import batched
from trlearner.output import Draws, Output
from trlearner.samples import Samples
from trlearner.seam import Engine
from trlearner.types import State

ENGINE = replace(batched.ENGINE, name="compiled")
TRACED = replace(batched.ENGINE, name="traced")
NAMES = (ENGINE.name, TRACED.name)
LIMIT = 8
"""So many graphs are kept for each pair of learner and regularizer."""

Step = Callable[[Engine, Any, State, TaskBatch, Draws], Output]
Key = tuple[tuple[str, Hashable], ...]


@dataclass(frozen=True)
class Graph:
    """A traced meta-step: a function of a flat list of tensors, and how to read what it returns."""

    run: Callable[..., Sequence[Tensor]]
    trained: tuple[str, ...]  # what has a gradient, in the order of the last outputs
    related: bool


def run(
    step: Step,
    owner: nn.Module,
    engine: Engine,
    learner: nn.Module,
    state: State,
    batch: TaskBatch,
    draws: Draws,
) -> Output:
    """`step`, from a graph that is traced at the first call of its kind.

    Args:
        step: The pure meta-step.
        owner: Whose step it is; its settings, like the learner's, are part of the graph.
        engine: `ENGINE` or `TRACED`.
        learner: As `step` takes it.
        state: As `step` takes it.
        batch: As `step` takes it.
        draws: As `step` takes it; λ and the temperature may change without a new graph.

    Raises:
        RuntimeError: The step cannot be traced or compiled, with the reason and what to do.
    """
    learn = torch.is_grad_enabled()
    inputs = _flatten(state, batch, draws)
    key = (
        ("engine", engine.name),
        ("gradients", learn),
        ("relation term", draws.related),
        ("ways", batch.ways),
        ("autocast", _autocast(batch.query.x.device.type)),
        *((name, _kind(t)) for name, t in inputs.items()),
        ("settings of the learner", _settings(learner)),
        ("settings of the regularizer", _settings(owner)),
    )
    graphs = _graphs.setdefault(learner, weakref.WeakKeyDictionary()).setdefault(
        owner, OrderedDict()
    )
    if key not in graphs:
        _report_change(graphs, key)
        graphs[key] = _build(step, engine, learner, state, batch, draws, inputs, learn)
        if len(graphs) > LIMIT:
            graphs.popitem(last=False)
    graph = graphs[key]
    graphs.move_to_end(key)
    with torch.no_grad():
        outputs = graph.run(*inputs.values())
    return _read(graph, engine, state, outputs)


class _Learned(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *trained: Tensor) -> Tensor:
        # Saved for what autograd checks of saved tensors: that nobody changes them before backward,
        # and that nobody goes backward twice.
        ctx.save_for_backward(*trained)
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a compiled meta-step knows its gradient, but not that gradient's derivative: "
                "create_graph=True needs engine='batched'."
            )
        assert len(ctx.saved_tensors) == len(ctx.gradients)
        return None, None, *torch._foreach_mul(ctx.gradients, upstream)


def _read(graph: Graph, engine: Engine, state: State, outputs: Sequence[Tensor]) -> Output:
    loss, own, related, predictions, *rest = outputs
    relations, weights = rest[:2] if graph.related else (None, None)
    if graph.trained:
        gradients = list(rest[2:] if graph.related else rest)
        trained = [state[name] for name in graph.trained]
        loss = _Learned.apply(loss, gradients, *trained)
    return Output(loss, own, related, relations, weights, predictions, engine.name)


def _build(
    step: Step,
    engine: Engine,
    learner: nn.Module,
    state: State,
    batch: TaskBatch,
    draws: Draws,
    inputs: dict[str, Tensor],
    learn: bool,
) -> Graph:
    """Traces and, unless the engine is `TRACED`, compiles."""
    from torch.fx.experimental.proxy_tensor import make_fx

    names = list(inputs)
    wanted = [n for n, t in state.items() if learn and t.requires_grad]
    trained: list[str] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(names, tensors, strict=True))
        leaves = {n: given[STATE + n].detach().requires_grad_(n in wanted) for n in state}
        with torch.set_grad_enabled(learn):
            out = step(engine, learner, leaves, *_unflatten(batch, draws, given))
            found: Sequence[Tensor | None] = ()
            if wanted:
                targets = [leaves[n] for n in wanted]
                found = torch.autograd.grad(out.loss, targets, allow_unused=True)
        trained[:] = [n for n, g in zip(wanted, found, strict=True) if g is not None]
        looks = [out.relations, out.weights] if draws.related else []
        every = [out.loss, out.task_loss, out.relation_loss, out.predictions, *looks, *found]
        return [t.detach() for t in every if t is not None]

    example = [t.detach() for t in inputs.values()]
    started = time.perf_counter()
    try:
        graph = make_fx(flat, tracing_mode="fake")(*example)
    except Exception as error:
        raise RuntimeError(
            f"engine={engine.name!r} could not trace this meta-step: {error}\nA model must not branch "
            "on the values of tensors, and every tensor that it or the loss uses must be a parameter, "
            "a buffer or an argument. Use engine='batched' or 'auto'."
        ) from error
    if engine.name == TRACED.name:
        return Graph(graph, tuple(trained), draws.related)
    nodes = len(graph.graph.nodes)
    _say(f"compiling one meta-step ({nodes} operations, traced in {_since(started)})...")
    compiled = _inductor(graph, example)
    _say(f"compiled in {_since(started)}; further steps reuse it.")
    return Graph(compiled, tuple(trained), draws.related)


def _inductor(
    graph: torch.fx.GraphModule, example: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    try:
        # With fallback_random, random layers draw what they would draw without a compiler.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch._inductor import compile_fx, config

            with config.patch(fallback_random=True):
                compiled = cast(
                    Callable[..., Sequence[Tensor]], compile_fx.compile_fx(graph, example)
                )
                compiled(*example)
    except Exception as error:
        raise RuntimeError(
            f"engine='compiled' could not compile this meta-step: {error}\nInductor needs a C++ "
            "compiler (g++ or clang++) on a CPU, and Triton on a GPU. Use engine='batched'."
        ) from error
    return compiled


STATE = "state."


def _flatten(state: State, batch: TaskBatch, draws: Draws) -> dict[str, Tensor]:
    """Everything that may change from step to step, by name."""
    device = batch.query.x.device
    found = {STATE + name: tensor for name, tensor in state.items()}
    for part in ("support", "query"):
        samples = getattr(batch, part)
        for name in ("x", "y", "mask"):
            if (value := getattr(samples, name)) is not None:
                found[f"{part}.{name}"] = value
    if draws.related:
        dtype = batch.query.x.dtype if batch.query.x.is_floating_point() else None
        for name in ("lam", "temperature"):
            found[name] = torch.tensor(getattr(draws, name), dtype=dtype, device=device)
    if draws.queries is not None:
        found["chosen queries"] = draws.queries
    return found


def _unflatten(batch: TaskBatch, draws: Draws, given: dict[str, Tensor]) -> tuple[TaskBatch, Draws]:
    support, query = (
        Samples.unchecked(
            given[f"{part}.x"], given[f"{part}.y"], given.get(f"{part}.mask"), batch.ways
        )
        for part in ("support", "query")
    )
    lam, temperature = given.get("lam", draws.lam), given.get("temperature", draws.temperature)
    queries = given.get("chosen queries")
    return batch.replace(support, query), Draws(lam, temperature, draws.related, queries)


def _kind(tensor: Tensor) -> Hashable:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad


def _autocast(device: str) -> Hashable:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)


def _settings(module: nn.Module) -> Hashable:
    """What a module's forward may depend on besides tensors; λ and temperature are tensors."""
    found = []
    for m in module.modules():
        for name, value in vars(m).items():
            if name[0] == "_" or name in ("lam", "temperature"):
                continue
            if isinstance(value, (bool, int, float, str, type(None))) or callable(value):
                found.append((name, value))
            elif isinstance(value, (tuple, list, dict)):
                found.append((name, repr(value)))
    return tuple(found)


def _report_change(graphs: OrderedDict[Key, Graph], key: Key) -> None:
    """Says what changed since the last graph that is of the same kind (engine, gradients, term)."""
    alike = [dict(old) for old in graphs if old[:3] == key[:3]]
    if not alike:
        return
    changed = [name for name, value in key if alike[-1].get(name) != value]
    changed += [name for name in alike[-1] if name not in dict(key)]
    warnings.warn(
        f"the meta-step is traced and compiled anew, because this changed: {', '.join(changed)}. "
        f"At most {LIMIT} graphs are kept; keep shapes and settings fixed, or pad tasks to one size.",
        stacklevel=5,
    )


def _say(text: str) -> None:
    print(f"trlearner: {text}", file=sys.stderr, flush=True)


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


_graphs: weakref.WeakKeyDictionary[
    nn.Module, weakref.WeakKeyDictionary[nn.Module, OrderedDict[Key, Graph]]
] = weakref.WeakKeyDictionary()
