"""A model's head, the layer that it ends in: run apart from the body before it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trlearner.base import functional
from trlearner.base.functional import OneThread
from trlearner.base.types import Fast, LossFn, SeesParts, State
from trlearner.engines.one_task import adapt_task
from trlearner.engines.task_learner import TaskLearner, Through
from trlearner.tasks.nested import Data
from trlearner.tasks.samples import Samples


def before(model: nn.Module, head: str, run: Callable[[], Any]) -> Any:
    """What the model hands to its head while `run` runs it; nothing after that is run.

    Raises:
        ValueError: The head is never called.
    """
    with OneThread(model.modules()):
        handle = model.get_submodule(head).register_forward_pre_hook(_stop)
        try:
            run()
        except _Reached as reached:
            return reached.features
        finally:
            handle.remove()
    raise ValueError(f"the model never called its head {head!r}. Name the layer that it ends in.")


def alone(model: nn.Module, head: str, state: State, features: Data) -> Tensor:
    """The head on what it was handed; `state` has the whole model's names."""
    own = {
        name.removeprefix(f"{head}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{head}.")
    }
    return functional.pure_call(model.get_submodule(head), own, features)


def check_name(model: nn.Module, head: str) -> None:
    """Refuse what is no part of the model, or shares parameters with the body.

    Raises:
        ValueError: Naming what is wrong.
    """
    modules = dict(model.named_modules())
    if not isinstance(head, str) or head not in modules or head == "":
        raise ValueError(
            f"head must name a part of the model, got {head!r}; there are "
            f"{sorted(name for name in modules if name)}."
        )
    first = {id(p): name for name, p in model.named_parameters()}
    own = modules[head].named_parameters()
    tied = [name for name, p in own if not first[id(p)].startswith(head + ".")]
    if tied:
        raise ValueError(
            f"the head's {tied} are shared with the body, so the head cannot stand alone. Use "
            "tr.MAML(model, adapts=...) with the names of what is to adapt, or give the head parameters of "
            "its own."
        )


def check_last(model: nn.Module, head: str, run: Callable[[], Any]) -> None:
    """Makes sure that the head is the last thing that happens while `run` runs the model.

    Raises:
        ValueError: It is not.
    """
    seen: list[tuple[int, Any]] = []
    handle = model.get_submodule(head).register_forward_hook(
        lambda module, inputs, output: seen.append((len(inputs), output))
    )
    try:
        output = run()
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][0] != 1 or seen[0][1] is not output:
        raise ValueError(
            f"the head {head!r} must be the last thing the model does, called once with one "
            f"tensor: it was called {len(seen)} times and the model's output is "
            f"{'' if seen and seen[-1][1] is output else 'not '}what it returned. Move what comes "
            "after it into the head, e.g. head=nn.Sequential(linear, rest), or let the same parameters adapt "
            f"wherever they stand: tr.MAML(model, adapts={head!r})."
        )


def check_learner(learner: HasModel, head: str, support: Samples, loss_fn: LossFn) -> None:
    """Makes sure, once, that a learner's models end in the head; tried on a task.

    Raises:
        ValueError: They do not.
    """
    checked = _checked.setdefault(learner, set())
    if head in checked:
        return
    check_name(learner.model, head)
    with torch.no_grad(), functional.random_state_kept(support.x):
        state, (x, y) = learner.state(), support.real(0)
        features = learner.embed(state, x)
        model = adapt_task(learner, state, features, y, support.ways, loss_fn, 0)
        check_last(learner.model, head, lambda: learner.predict(state, model, features))
    checked.add(head)


_checked: weakref.WeakKeyDictionary[HasModel, set[str]] = weakref.WeakKeyDictionary()


@runtime_checkable
class HasModel(TaskLearner, Protocol, metaclass=SeesParts):
    """A learner that adapts a model."""

    model: nn.Module

    def model_state(self, state: State) -> State:
        """The model's own parameters and buffers, by its own names."""


class _Part(Through[HasModel]):
    """A part of what a learner's adapted models do; the rest is the learner's.

    Args:
        learner: Whose models these are.
        head: Its model's head.
    """

    def __init__(self, learner: HasModel, head: str) -> None:
        super().__init__(learner)
        self.head = head


class Body(_Part):
    """Adapted models as far as their heads."""

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        """What the head is handed ``[samples, ...]``."""
        learner = self.learner
        return before(learner.model, self.head, lambda: learner.predict(state, fast, features))


class Head(_Part):
    """The heads of adapted models."""

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        """Predictions ``[samples, ...]`` from what a body handed on."""
        learner = self.learner
        return alone(learner.model, self.head, learner.model_state({**state, **fast}), features)

    def couples_samples(self) -> bool:
        """Whether samples see each other in the head."""
        return functional.couples_samples(self.learner.model.get_submodule(self.head))


class _Reached(Exception):
    def __init__(self, features: Data) -> None:
        self.features = features


def _stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _Reached(inputs[0])
