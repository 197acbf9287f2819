"""ANIL (Raghu et al. 2020, arXiv 1909.09157): only the head adapts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trlearner import functional
from trlearner.learners.protocol import MODEL, GradientLearner
from trlearner.learners.rates import Rate, check_rates, rate_at
from trlearner.samples import Samples
from trlearner.types import Fast, State


class ANIL(GradientLearner):
    """MAML that adapts the model's last layer only; the body before it runs once for all tasks.

    Args:
        model: A model whose output is what its head returns.
        head: The head's name within the model, e.g. ``"head"`` or ``"layers.3"``.
        lr: The inner rate; as for `MAML`, by names below the head.
        steps: Inner steps.
        first_order: Treat inner gradients as constants.
        engine: As in `MAML`.
        recompute: As in `MAML`.

    Raises:
        ValueError: The model has no such head, or the head is not the last thing it does.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str,
        lr: Rate = 0.01,
        steps: int = 5,
        first_order: bool = False,
        engine: str = "auto",
        recompute: bool = False,
    ) -> None:
        super().__init__(
            model, steps=steps, first_order=first_order, engine=engine, recompute=recompute
        )
        modules = dict(model.named_modules())
        if head not in modules or head == "":
            raise ValueError(
                f"head must name a part of the model, got {head!r}; there are "
                f"{sorted(name for name in modules if name)}."
            )
        self.head = head
        if not self.trainable(head + "."):
            raise ValueError(f"head {head!r} has no trainable parameter, so nothing could adapt.")
        first = {id(p): name for name, p in model.named_parameters()}
        tied = [
            n
            for n, p in modules[head].named_parameters()
            if not first[id(p)].startswith(head + ".")
        ]
        if tied:
            raise ValueError(
                f"the head's {tied} are shared with the body, so the head cannot adapt alone. Use MAML, or "
                "give the head parameters of its own."
            )
        check_rates(lr, [n for n, _ in modules[head].named_parameters()])
        self.lr = lr
        self._checked = False

    def start(self, state: State) -> Fast:
        """The head's parameters that are not frozen."""
        return {name: state[name] for name in self.trainable(self.head + ".")}

    def rate(self, state: State, name: str, step: int) -> float:
        """The configured rate."""
        return rate_at(self.lr, name.removeprefix(f"{MODEL}{self.head}."), step)

    def prepare(self, samples: Samples) -> None:
        """Makes sure, once, that the head is the last thing the model does."""
        if not self._checked:
            self._check_head(samples.real(0)[0])

    def embed(self, state: State, x: Tensor) -> Tensor:
        """The body: what the model hands to its head."""
        handle = self.model.get_submodule(self.head).register_forward_pre_hook(_stop)
        try:
            functional.pure_call(self.model, self.model_state(state), x)
        except _Reached as reached:
            return reached.features
        finally:
            handle.remove()
        raise ValueError(
            f"the model never called its head {self.head!r}. Name the layer that it ends in."
        )

    def predict(self, state: State, fast: Fast, features: Tensor) -> Tensor:
        """The adapted head on the body's features."""
        model = self.model_state({**state, **fast})
        own = {
            n.removeprefix(f"{self.head}."): t
            for n, t in model.items()
            if n.startswith(f"{self.head}.")
        }
        return functional.pure_call(self.model.get_submodule(self.head), own, features)

    def _check_head(self, x: Tensor) -> None:
        seen: list[Any] = []
        handle = self.model.get_submodule(self.head).register_forward_hook(
            lambda module, inputs, output: seen.append((len(inputs), output))
        )
        try:
            with torch.no_grad(), functional.random_state_kept(x):
                output = functional.pure_call(self.model, self.model_state(self.state()), x)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0][0] != 1 or seen[0][1] is not output:
            raise ValueError(
                f"the head {self.head!r} must be the last thing the model does, called once with one "
                f"tensor: it was called {len(seen)} times and the model's output is "
                f"{'' if seen and seen[-1][1] is output else 'not '}what it returned. Move what comes "
                "after it into the head, e.g. head=nn.Sequential(linear, rest)."
            )
        self._checked = True


class _Reached(Exception):
    def __init__(self, features: Tensor) -> None:
        self.features = features


def _stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _Reached(inputs[0])
