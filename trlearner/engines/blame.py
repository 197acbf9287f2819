"""Whose mistake a failed step is: an engine's, or one in the model, the loss or the data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from trlearner.base.functional import Busy, random_state_kept
from trlearner.base.types import LossFn
from trlearner.engines.one_task import adapt_task
from trlearner.engines.second_order import ONCE, advice
from trlearner.engines.task_learner import GradientTaskLearner, TaskLearner
from trlearner.tasks.loss import task_loss
from trlearner.tasks.nested import Nested, leaves, shown
from trlearner.tasks.samples import Samples


@contextmanager
def blaming(
    learner: TaskLearner, loss_fn: LossFn | None, parts: Mapping[str, Samples]
) -> Iterator[None]:
    """Where what is inside fails, raises what `blamed` says; arguments as there."""
    try:
        yield
    except Exception as error:
        if (mistake := blamed(error, learner, loss_fn, parts)) is not None:
            raise mistake from error
        raise


def blamed(
    error: Exception, learner: TaskLearner, loss_fn: LossFn | None, parts: Mapping[str, Samples]
) -> Exception | None:
    """The user's own mistake behind a failed step, if a plain step on one task shows one.

    Args:
        error: What the step raised.
        learner: As in `own_mistake`.
        loss_fn: As in `own_mistake`.
        parts: As in `own_mistake`.

    Returns:
        An error that does not speak of engines; ``None`` where `error` says it all.
    """
    if isinstance(error, (torch.OutOfMemoryError, Busy)):
        return None  # a trial would need memory, or modules that another thread is using
    mistake = own_mistake(learner, loss_fn, parts)
    if mistake is None or (type(mistake), str(mistake)) == (type(error), str(error)):
        return None
    return mistake


def own_mistake(
    learner: TaskLearner, loss_fn: LossFn | None, parts: Mapping[str, Samples]
) -> Exception | None:
    """What a plain step on the first task raises, explained; ``None`` where it works.

    Args:
        learner: Adapts.
        loss_fn: For one task; without one, only predictions are tried.
        parts: Samples by what error texts call them; the first part is adapted on.
    """
    graph = torch.is_grad_enabled()
    (first, *_) = parts.values()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        random_state_kept(first.x),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name, samples in parts.items():
            if (found := _forward(learner, loss_fn, name, samples)) is not None:
                return found
        if loss_fn is None:
            return None
        try:
            with torch.set_grad_enabled(graph):
                _step(learner, first, loss_fn)
        except Exception as error:
            once = next((o for o in ONCE if re.search(o.error, str(error))), None)
            return error if once is None else RuntimeError(advice(once))
    return None


def _one(samples: Samples) -> Samples:
    x, y = samples.real(0)
    return Samples.unchecked(x[None].clone(), y[None].clone(), None, samples.ways)


def _forward(
    learner: TaskLearner, loss_fn: LossFn | None, name: str, samples: Samples
) -> Exception | None:
    """The model, then the loss, before adaptation."""
    one, calls = _one(samples), _Calls(learner)
    try:
        with calls.recorded():
            if (prepare := getattr(learner, "prepare", None)) is not None:
                prepare(samples)  # whether the learner can do with this model at all
            state, x = learner.state(), one.x[0]
            features = learner.embed(state, x)
            calls.running.clear()  # ANIL leaves its model at the head
            if loss_fn is None and not isinstance(learner, GradientTaskLearner):
                return None
            fast = adapt_task(learner, state, features, one.y[0], one.ways, loss_fn or _nothing, 0)
            predictions = learner.predict(state, fast, features)
    except Exception as error:
        return _of_model(error, calls, f"{name}.x", samples.x)
    for path, leaf in leaves(predictions):
        if leaf.ndim == 0 or len(leaf) != len(x):
            return ValueError(
                f"the model must return predictions [samples, ...] with samples = {len(x)}, as a task has, "
                f"got {list(leaf.shape)}{f' at {path}' if path else ''}. Keep the first axis in its forward."
            )
    if loss_fn is None:
        return None
    try:
        task_loss(loss_fn, predictions, one.y[0])
    except Exception as error:
        return _of_loss(error, name, predictions, one.y[0])
    return None


def _nothing(predictions: Tensor, targets: Tensor) -> Tensor:
    raise NotImplementedError  # without steps, no loss is called


def _step(learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> None:
    """A meta-step of one inner step, with its gradient where one is wanted."""
    one, state = _one(samples), learner.state()
    features, targets = learner.embed(state, one.x[0]), one.y[0]
    fast = adapt_task(learner, state, features, targets, one.ways, loss_fn, 1)
    loss = task_loss(loss_fn, learner.predict(state, fast, features), targets)
    if loss.requires_grad:
        trained = [t for t in state.values() if t.requires_grad]
        torch.autograd.grad(loss, trained, allow_unused=True)


class _Calls:
    """Which of a learner's modules is running, and what it was given."""

    def __init__(self, learner: TaskLearner) -> None:
        self.running: list[tuple[str, nn.Module, list[Tensor]]] = []
        self._modules = list(learner.modules())
        model = getattr(learner, "model", None)
        named = model.named_modules() if isinstance(model, nn.Module) else ()
        self._names = {module: name for name, module in named}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        me = get_ident()

        def enters(module: nn.Module, given: Any) -> None:
            if get_ident() != me:  # another thread, which runs the same modules between our calls
                return
            tensors = [t for t in given if isinstance(t, Tensor)]
            self.running.append((self._names.get(module, ""), module, tensors))

        def leaves(module: nn.Module, given: Any, output: Any) -> None:
            if get_ident() == me:
                self.running.pop()

        handles = [m.register_forward_pre_hook(enters) for m in self._modules]
        handles += [m.register_forward_hook(leaves) for m in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _of_model(error: Exception, calls: _Calls, name: str, x: Any) -> Exception:
    """What the innermost layer that failed was given, and what it takes."""
    if type(error) not in (RuntimeError, NotImplementedError, IndexError) or not calls.running:
        return error  # it speaks for itself
    path, layer, given = calls.running[-1]
    where = f"its layer {path!r} ({type(layer).__name__})" if path else type(layer).__name__
    whole = f"{name} is {_kind(x)} on {x.device}"
    if given and (expected := _expected(layer, given[0])) is not None:
        takes, fix = expected
        got = f"{_kind(given[0])} on {given[0].device}"
        return ValueError(
            f"{name} does not fit the model: {where} takes {takes}, but for one task it got {got} "
            f"({whole}). {fix}"
        )
    said = str(error).strip().splitlines()[0].rstrip(".")
    return type(error)(  # it may be one that the model raises itself
        f"the model fails in its forward on the inputs of one task, in {where}: {said}. {whole}; make "
        f"model({name}[0]) run."
    )


def _expected(layer: nn.Module, given: Tensor) -> tuple[str, str] | None:
    """What a layer takes where that is not what it was given, and how to mend it."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        if given.is_floating_point():
            return "whole numbers", "Convert the inputs: x.long()."
        return f"numbers from 0 to {layer.num_embeddings - 1}", "Number the inputs from zero."
    held = [p for p in layer.parameters() if p.is_floating_point()]
    if held and given.device != held[0].device:
        return (
            f"inputs on {held[0].device}",
            f"Move the batch, batch.to({str(held[0].device)!r}), or the model.",
        )
    if held and given.dtype != held[0].dtype:
        dtype = held[0].dtype
        return (
            f"{dtype}",
            f"Convert the inputs, x.to({dtype})"
            + (", or the model." if given.is_floating_point() else "."),
        )
    width = _width(layer)
    if width is None:
        return None
    axis, size, argument = width
    if given.ndim > abs(axis) - (axis < 0) and given.shape[axis] != size:
        place = "last axis" if axis == -1 else "second axis"
        return (
            f"{size} features on the {place} ({argument}={size})",
            f"Build it with {argument}={given.shape[axis]}, or change x.",
        )
    return None


def _width(layer: nn.Module) -> tuple[int, int, str] | None:
    """Which axis of its inputs a layer fixes the size of, that size, and what its argument is called."""
    if isinstance(layer, nn.Linear):
        return -1, layer.in_features, "in_features"
    if isinstance(layer, _ConvNd):
        return 1, layer.in_channels, "in_channels"
    if isinstance(layer, _NormBase):
        return 1, layer.num_features, "num_features"
    return None


def _of_loss(error: Exception, name: str, predictions: Any, targets: Any) -> Exception:
    if isinstance(predictions, Nested):
        said = str(error).strip().splitlines()[0].rstrip(".")
        return TypeError(
            f"loss_fn fails on what the model returns, several tensors {shown(predictions)}: {said}. If one "
            'of them holds the predictions, name it: output=0 or output="logits" of the learner. Else pass '
            "a loss_fn that takes them all."
        )
    if type(error) not in (RuntimeError, NotImplementedError, IndexError):
        return error
    said = str(error).strip().splitlines()[0].rstrip(".")
    return type(error)(
        f"loss_fn fails on one task's predictions, {_kind(predictions)}, and targets, {_kind(targets)} "
        f"({name}.y): {said}. It is called as loss_fn(predictions, targets) for one task; pass "
        "targets of the type and shape that it takes, or another loss."
    )


def _kind(value: Any) -> str:
    return ", ".join(
        f"{path}{' ' * bool(path)}{t.dtype} {list(t.shape)}" for path, t in leaves(value)
    )
