"""ANIL (Raghu et al. 2020, arXiv 1909.09157): only the head adapts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trlearner.base import functional
from trlearner.base.types import Fast, State
from trlearner.engines.head import alone, before, check_last, check_name
from trlearner.engines.task_learner import StepSize
from trlearner.learners.protocol import MODEL, GradientLearner
from trlearner.learners.rates import Rate, check_rates, rates_of
from trlearner.tasks.model_call import Call
from trlearner.tasks.nested import Data
from trlearner.tasks.samples import Samples


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
        call: As in `MAML`.
        output: As in `MAML`.

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
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(
            model,
            steps=steps,
            first_order=first_order,
            engine=engine,
            recompute=recompute,
            call=call,
            output=output,
        )
        check_name(model, head)
        self.head = head
        if not self.trainable(head + "."):
            raise ValueError(f"head {head!r} has no trainable parameter, so nothing could adapt.")
        check_rates(lr, [n for n, _ in model.get_submodule(head).named_parameters()])
        self.lr = lr
        self._checked = False

    def start(self, state: State) -> Fast:
        """The head's parameters that are not frozen."""
        return {name: state[name] for name in self.trainable(self.head + ".")}

    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The configured rates."""
        return rates_of(self.lr, names, f"{MODEL}{self.head}.")

    def prepare(self, samples: Samples) -> None:
        """Makes sure, once, that the head is the last thing the model does."""
        if not self._checked:
            x = samples.real(0)[0]
            with torch.no_grad(), functional.random_state_kept(x):
                state = self.model_state(self.state())
                check_last(self.model, self.head, lambda: self.run(state, x))
            self._checked = True

    def embed(self, state: State, x: Data) -> Any:
        """The body: what the model hands to its head."""
        return before(
            self.model,
            self.head,
            lambda: self.run(self.model_state(state), x),
        )

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        """The adapted head on the body's features."""
        return alone(self.model, self.head, self.model_state({**state, **fast}), features)
