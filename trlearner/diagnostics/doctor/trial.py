"""The trials: does it differentiate twice, run under ``torch.vmap``, and trace into a graph?

Each layer is tried alone, on what it was given in the recorded forward; the root is a real meta-step.
Layers that are known to be broken are replaced by stand-ins, so that they don't hide the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_unflatten

from trlearner.base.functional import discarded_statistics, random_state_kept, tensors
from trlearner.base.types import LossFn
from trlearner.diagnostics.doctor.held import rebuilt
from trlearner.diagnostics.doctor.record import Call, Node, kept, replaced, signature, tensors_in
from trlearner.engines import batched, loop
from trlearner.engines.adapted import adapt
from trlearner.engines.embedding import concerns, padded_embeddings
from trlearner.learners.protocol import Learner
from trlearner.tasks.nested import arranged, leaves
from trlearner.tasks.samples import Samples

Trial = Literal["second", "vmap", "trace"]
Function = Callable[..., list[Tensor]]

# An old spectral norm does its work in a hook.
NO_HOOKS: dict[str, Any] = {"_forward_pre_hooks": {}, "_forward_hooks": {}}


class NotFinite(ArithmeticError):
    """A layer's outputs or gradients contain NaN or infinity."""


@dataclass(frozen=True, eq=False)
class Patient:
    """Copies of what the user gave, free to be changed.

    Attributes:
        learner: Tried on one task.
        support: That task's, ``[1, samples, ...]``.
        query: That task's.
        loss_fn: A module, so that it is a layer like any other.
        adapts: Whether anything adapts by gradient.
    """

    learner: Learner
    support: Samples
    query: Samples
    loss_fn: LossFn
    adapts: bool

    @property
    def second_order(self) -> bool:
        """Whether gradients of gradients are needed at all."""
        return self.adapts and not getattr(self.learner, "first_order", False)


def attempt(
    patient: Patient,
    node: Node,
    trial: Trial,
    once: bool = False,
    standing_in: Collection[Node] = (),
    shielded: Collection[Node] = (),
) -> Exception | None:
    """What goes wrong, if anything.

    Args:
        patient: Whose layer it is.
        node: The layer.
        trial: Which.
        once: Take first derivatives only.
        standing_in: Layers that are replaced by `stand_in`.
        shielded: Layers that get copies of their inputs, to overwrite as they like.
    """
    others: dict[nn.Module, dict[str, Any]] = {}
    for other in {*standing_in, *shielded} - {node}:
        assert other.module is not None
        if other in standing_in:
            others[other.module] = {"forward": stand_in(other), **NO_HOOKS}
        else:
            others[other.module] = {"forward": _shielded(other.module.forward)}
    functions = _of_step(patient, trial, once) if node.module is None else _of_node(node)
    # The root takes its inner gradients itself.
    twice = patient.second_order and not once and node.module is not None and node.adapts
    together = trial != "second" and (node.adapts or patient.learner.couples_samples())
    # What torch.compile meets under vmap or a tracer, it never compiles again.
    stance = "default" if trial == "second" else "force_eager"
    with (
        torch.compiler.set_stance(stance),
        kept(patient.learner),
        replaced(others),
        random_state_kept(patient.support.x),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            for function, given, learned, own in functions:
                if together and node.module is not None:
                    function = _together(function, own, concerns(node.module.modules()))
                _differentiate_or_trace(trial, function, given, learned, twice)
        except Exception as error:
            given = tensors_in([call.leaves for call in node.calls.values()])
            passed_on = isinstance(error, NotFinite) and not all(map(_finite, given))
            return None if passed_on else error
    return None


def _differentiate_or_trace(
    trial: Trial, function: Function, given: list[Tensor], learned: list[bool], twice: bool
) -> None:
    if trial == "trace":
        from torch.fx.experimental.proxy_tensor import make_fx

        def gradients(*values: Tensor) -> list[Tensor]:
            total, leaves = _total(function, values, learned, twice)
            if total is None:
                return []
            found = torch.autograd.grad(total, leaves, allow_unused=True)
            return [g.detach() for g in found if g is not None]

        make_fx(gradients, tracing_mode="fake")(*[t.detach() for t in given])
    elif (total := _total(function, given, learned, twice)[0]) is not None:
        finite = _backward(total)
        if trial == "second" and not finite:
            raise NotFinite("outputs or gradients that are not finite")


def _backward(total: Tensor) -> bool:
    """``total.backward()`` that leaves no gradient anywhere; whether all was finite.

    Not autograd.grad, which passes over what is marked as once differentiable without a word. But a
    loss may hold tensors of the user's, whose gradients are none of ours.
    """
    seen, ahead, held = set(), [total.grad_fn], []
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [follower for follower, _ in node.next_functions]
        if hasattr(node, "variable"):
            held.append((node.variable, node.variable.grad))
    try:
        for leaf, _ in held:
            leaf.grad = None
        total.backward()
        found = [leaf.grad for leaf, _ in held if leaf.grad is not None]
        return all(map(_finite, [total.detach(), *found]))
    finally:
        for leaf, gradient in held:
            leaf.grad = gradient


def _finite(t: Tensor) -> bool:
    return bool(torch.isfinite(t.coalesce().values() if t.is_sparse else t).all())


def _total(
    function: Function, given: Sequence[Tensor], learned: list[bool], twice: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The squared outputs, summed, or (if `twice`) their squared gradients; and what they depend on."""
    leaves = [
        t.detach().clone().requires_grad_(need) for t, need in zip(given, learned, strict=True)
    ]
    wanted = [t for t in leaves if t.requires_grad]
    # Squares, for then gradients depend on all that is differentiated next.
    outputs = function(*leaves)
    if twice:
        # A weight behind the layer, to which second derivatives lead as well.
        behind = torch.ones((), requires_grad=True)
        outputs = [behind * t if t.requires_grad else t for t in outputs]
    total = _squares(outputs)
    if twice and total is not None and wanted:
        found = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        total = _squares([g for g in found if g is not None])
    return total, wanted


def _squares(values: list[Tensor]) -> Tensor | None:
    carrying = [(t * t.conj()).real.sum().float() for t in values if t.requires_grad]
    return torch.stack(carrying).sum() if carrying else None


def _of_node(node: Node) -> list[tuple[Function, list[Tensor], list[bool], list[bool]]]:
    """Every recorded call of a module as a function of its parameters, buffers and tensor inputs."""
    assert node.module is not None
    state = tensors(node.module)
    found = []
    for call in node.calls.values():
        given = [*state.values(), *(leaf for leaf in call.leaves if isinstance(leaf, Tensor))]
        needs = [t.requires_grad for t in state.values()]
        moved = [need and node.adapts for need in needs]
        function = _call(node.module, list(state), call)
        found.append((function, given, needs + call.learned, moved + call.own))
    return found


def _call(module: nn.Module, names: list[str], call: Call) -> Function:
    def function(*values: Tensor) -> list[Tensor]:
        state = dict(zip(names, values[: len(names)], strict=True))
        for name, _ in module.named_buffers():
            state[name] = state[name].clone()
        # In a model inputs are no leaves, so that a layer may overwrite them.
        inputs = iter([t.clone() for t in values[len(names) :]])
        leaves = [next(inputs) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
        visible = call.spec.num_leaves
        # A cache, say, is written into: each call gets one as it was before.
        now = {id(t): new for t, new in zip(call.leaves, leaves, strict=True) if t is not new}
        leaves = [t if isinstance(t, Tensor) else rebuilt(t, now) for t in leaves[:visible]]
        args, kwargs = tree_unflatten(leaves, call.spec)
        with discarded_statistics(module):
            output = torch.func.functional_call(module, state, args, kwargs)
        return tensors_in(output)

    return function


def _together(function: Function, own: list[bool], corrected: bool) -> Function:
    """Two tasks at once, as engine ``batched`` runs them."""
    if not any(own):
        return function

    def together(*values: Tensor) -> list[Tensor]:
        spread = [t.expand(2, *t.shape) if each else t for t, each in zip(values, own, strict=True)]
        dims = tuple(0 if each else None for each in own)
        # As in the engine: within a mode, torch's own layers may take another path, and a transformer's
        # layers in evaluation mode never take theirs, which has no derivative.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with padded_embeddings() if corrected else nullcontext():
                return torch.vmap(function, in_dims=dims, randomness="different")(*spread)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    return together


def _of_step(
    patient: Patient, trial: Trial, once: bool
) -> list[tuple[Function, list[Tensor], list[bool], list[bool]]]:
    """A meta-step of one inner step, as the engine runs it."""
    learner, engine = patient.learner, loop.ENGINE if trial == "second" else batched.ENGINE
    tasks = 1 if trial == "second" else 2
    state = learner.state()
    parts = patient.support, patient.query
    like = [value for s in parts for value in (s.x, s.y)]
    data = [t.repeat_interleave(tasks, 0) for value in like for _, t in leaves(value)]
    steps = 0 if once or not patient.adapts else 1

    def function(*values: Tensor) -> list[Tensor]:
        here = dict(zip(state, values[: len(state)], strict=True))
        given = iter(values[len(state) :])
        x, y, query_x, query_y = (arranged(v, [next(given) for _ in leaves(v)]) for v in like)
        support = Samples.unchecked(x, y, None, parts[0].ways)
        query = Samples.unchecked(query_x, query_y, None, parts[1].ways)
        models = adapt(engine, learner, here, support, patient.loss_fn, steps)
        predictions = models.predict(models.embed(query))
        return [models.losses(patient.loss_fn, predictions, query).sum()]

    learned = [t.requires_grad for t in state.values()] + [False] * len(data)
    return [(function, [*state.values(), *data], learned, learned)]


def stand_in(node: Node) -> Callable[..., Any]:
    """A forward that returns zeros of the recorded shapes, which depend on all that the layer's do."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        assert node.module is not None
        given = tensors_in((args, kwargs))
        call = node.calls.get(signature(given), next(iter(node.calls.values())))
        sources = [*given, *node.module.parameters()]
        nothing = sum((0 * t).sum() for t in sources if t.is_floating_point())

        def empty(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            zeros = torch.zeros(t.shape, dtype=t.dtype, device=t.device)
            return zeros + nothing if t.is_floating_point() else zeros

        return tree_map(empty, call.output)

    return forward


def _shielded(forward: Callable[..., Any]) -> Callable[..., Any]:
    def copying(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, (args, kwargs))
        return forward(*args, **kwargs)

    return copying
