"""A step traced into one graph, compiled by Inductor, with its gradient known to autograd."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from trlearner.base.functional import random_state, set_random_state
from trlearner.engines.batched import NotBatchable
from trlearner.tasks.targets import Misfit

OFF, LEAST = 0.02, 0.01
"""A compiled graph may be off by this share of a result's size, or of this share of the largest result."""

Compiled = Callable[..., Sequence[Tensor]]
Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""A pure function of named tensors; what it calls ``loss`` is what gradients are taken of."""


class NotCompilable(RuntimeError):
    """A step cannot be made into a graph, or there is nothing to compile it with."""


@dataclass(frozen=True)
class Graph:
    """A function of a flat list of tensors, and how to read the list that it returns."""

    run: Compiled
    outputs: tuple[str, ...]
    trained: tuple[str, ...]  # the inputs that have a gradient, in the order of the last results
    signature: (
        bytes | None
    )  # of the operations; graphs of the same inputs and signature are the same

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name; ``loss`` carries the gradient of the inputs that were to have one."""
        with torch.no_grad():
            found = self.run(*inputs.values())
        outputs = dict(zip(self.outputs, found, strict=False))
        if self.trained:
            gradients = found[len(self.outputs) :]
            trained = [inputs[name] for name in self.trained]
            outputs["loss"] = _Known.apply(outputs["loss"], gradients, *trained)
        return outputs


class _Known(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *trained: Tensor) -> Tensor:
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


def build(
    function: Function,
    inputs: dict[str, Tensor],
    wanted: Sequence[str],
    engine: str,
    compile: bool,
    known: Iterable[Graph] = (),
) -> Graph:
    """Traces and, if asked to, compiles.

    Args:
        function: What to trace.
        inputs: An example of what it takes; the graph takes the same names, shapes and types.
        wanted: The inputs whose gradients the graph is to compute, where there are any.
        engine: What error texts call the engine.
        compile: Whether Inductor compiles what was traced.
        known: Graphs of the same inputs; if the trace gives one of these, it is returned.

    Raises:
        NotCompilable: With the reason and what to do.
    """
    started = time.perf_counter()
    try:
        traced, outputs, trained = _trace(function, inputs, wanted)
    except Misfit:
        raise  # no fault of the graph's
    except NotBatchable as error:
        raise NotCompilable(f"engine={engine!r} could not trace this meta-step: {error}") from error
    except Exception as error:
        raise NotCompilable(
            f"engine={engine!r} could not trace this meta-step: {error}\nA model must not branch "
            "on the values of tensors, and every tensor that it or the loss uses must be a parameter, "
            "a buffer or an argument. Use engine='batched' or 'auto'."
        ) from error
    signature = _signature(traced)
    for graph in known:
        if signature is not None and graph.signature == signature:
            return graph
    if not compile:
        return Graph(_reshaping(traced), outputs, trained, signature)
    say(f"compiling {len(traced.graph.nodes)} operations, traced in {_since(started)}...")
    graph = Graph(_inductor(traced, list(inputs.values())), outputs, trained, signature)
    say(f"compiled in {_since(started)}; further steps reuse it.")
    return graph


def _trace(
    function: Function, inputs: dict[str, Tensor], wanted: Sequence[str]
) -> tuple[torch.fx.GraphModule, tuple[str, ...], tuple[str, ...]]:
    from torch.fx.experimental.proxy_tensor import make_fx

    seen: list[tuple[str, ...]] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(inputs, tensors, strict=True))
        given |= {name: given[name].detach().requires_grad_() for name in wanted}
        with torch.set_grad_enabled(bool(wanted)):
            outputs = function(given)
            found: Sequence[Tensor | None] = ()
            if wanted:
                targets = [given[name] for name in wanted]
                found = torch.autograd.grad(outputs["loss"], targets, allow_unused=True)
        trained = [name for name, g in zip(wanted, found, strict=True) if g is not None]
        seen[:] = [tuple(outputs), tuple(trained)]
        return [t.detach() for t in (*outputs.values(), *found) if t is not None]

    graph = make_fx(flat, tracing_mode="fake")(*(t.detach() for t in inputs.values()))
    return graph, seen[0], seen[1]


def _copy(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same graph, which compiling the other leaves as it is."""
    nodes = torch.fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    return torch.fx.GraphModule(graph, nodes)


def _reshaping(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with `reshape` for `view`: kernels may lay out results otherwise than tracing foresaw."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    graph.recompile()
    return graph


def _signature(graph: torch.fx.GraphModule) -> bytes | None:
    """The same for graphs that do the same; ``None`` for one that holds tensors."""
    if any(node.op == "get_attr" for node in graph.graph.nodes):
        return None
    return hashlib.sha256(graph.code.encode()).digest()


def _inductor(graph: torch.fx.GraphModule, example: list[Tensor]) -> Compiled:
    on_cpu = all(t.device.type == "cpu" for t in example)
    plain = _reshaping(_copy(graph))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch._guards import TracingContext, tracing
            from torch._inductor import compile_fx, config
            from torch._subclasses import FakeTensorMode
            from torch.fx.experimental.symbolic_shapes import ShapeEnv

            # Shapes are fixed, but without a shape environment Inductor's caches on disk are
            # bypassed, and a second process would compile all over again.
            fake = FakeTensorMode(shape_env=ShapeEnv())
            fakes = [fake.from_tensor(t.detach(), static_shapes=True) for t in example]
            for node, value in zip(graph.graph.find_nodes(op="placeholder"), fakes, strict=True):
                node.meta["val"] = (
                    value  # some releases of torch compile for these, not for `fakes`
                )
            # With fallback_random, random layers draw what they would draw without a compiler. A
            # wrapper in C++ calls small kernels with half the delay of one in Python.
            with (
                config.patch(fallback_random=True, cpp_wrapper=on_cpu),
                tracing(TracingContext(fake)),
            ):
                compiled = cast(Compiled, compile_fx.compile_fx(graph, fakes))
            _check_same(compiled, plain, example)
    except NotCompilable:
        raise
    except Exception as error:
        raise NotCompilable(
            f"engine='compiled' could not compile this meta-step: {error}\n"
            f"{_missing(on_cpu)}Use engine='batched'."
        ) from error
    return compiled


def _check_same(compiled: Compiled, plain: Compiled, example: list[Tensor]) -> None:
    """Runs what Inductor made once, and refuses it where it computes something else than the graph.

    Inductor has compiled meta-steps wrongly: right losses with wrong gradients, around ``nn.RNNCell``.

    Raises:
        NotCompilable: Saying by how much it is off.
    """
    before = random_state()
    found = compiled(*example)
    after = random_state()
    set_random_state(before)
    wanted = plain(*example)
    set_random_state(after)
    pairs = [
        (a, b) for a, b in zip(found, wanted, strict=True) if b.is_floating_point() and b.numel()
    ]
    scales = [float(b.abs().max()) for _, b in pairs]
    least = LEAST * max((s for s in scales if math.isfinite(s)), default=0.0)
    for (a, b), scale in zip(pairs, scales, strict=True):
        off = float((a.double() - b.double()).abs().max())
        if math.isfinite(scale) and not off <= OFF * max(scale, least):
            raise NotCompilable(
                "engine='compiled' would compute something else than this meta-step: Inductor's code is off "
                f"by {off:.3g} where numbers are of size {scale:.3g}. Use engine='batched'."
            )


def _missing(on_cpu: bool) -> str:
    """What Inductor needs and is not there; empty where the cause lies elsewhere."""
    if on_cpu:
        # As Inductor looks for it; CXX may hold arguments, too.
        name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(shlex.split(name)[0]) is None:
            return (
                f"Inductor needs a C++ compiler, and there is no {name!r}: install it, or set CXX. "
            )
    elif importlib.util.find_spec("triton") is None:
        return "Inductor needs Triton on a GPU, which is not installed: pip install triton. "
    return ""


def say(text: str) -> None:
    """One line of progress, on stderr."""
    print(f"trlearner: {text}", file=sys.stderr, flush=True)


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"
