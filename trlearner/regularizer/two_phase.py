"""The exact gradient of collected tasks with the graph of one inner loop at a time.

First every task is adapted to and its graph is cut at the adapted parameters; the loss, relation term
included, is taken back to these cuts. Then each task is adapted to once more, with the same random draws, and
what arrived at its cut is taken on to the initial parameters. It costs every adaptation twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from trlearner.base.functional import random_state, set_random_state
from trlearner.tasks.samples import Pair

Adapt = Callable[[Pair], Any]
Answer = Callable[[Any, Tensor], Any]


@dataclass(frozen=True, eq=False)
class Cut:
    """A task whose inner loop's graph is cut off.

    Attributes:
        adapt: From a support pair to the adapted parameters, a tensor or a tuple, list or dict of them.
        predict: ``(adapted parameters, x [samples, ...]) -> predictions``.
        support: The task's support pair.
        leaves: The adapted parameters as leaves of autograd.
        spec: How they were arranged.
        draws: The random state before adaptation.
        model: Its buffers are left as one adaptation leaves them.
    """

    adapt: Adapt
    predict: Answer
    support: Pair
    leaves: list[Tensor]
    spec: Any
    draws: list[Tensor]
    model: nn.Module | None

    def __call__(self, x: Tensor) -> Any:
        """The adapted model."""
        return self.predict(tree_unflatten(self.leaves, self.spec), x)

    def finish(self) -> None:
        """Takes the gradient at the cut on to what adaptation started from."""
        reached = [leaf.grad for leaf in self.leaves]
        if all(gradient is None for gradient in reached):
            return
        buffers = [] if self.model is None else list(self.model.buffers())
        before, after = [b.clone() for b in buffers], random_state()
        set_random_state(self.draws)
        try:
            again, _ = tree_flatten(self.adapt(self.support))
        finally:
            set_random_state(after)
        pairs = [
            (a, g) for a, g in zip(again, reached, strict=True) if g is not None and a.requires_grad
        ]
        torch.autograd.backward([a for a, _ in pairs], [g for _, g in pairs])
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def cut(adapt: Adapt, predict: Answer, support: Pair, model: nn.Module | None) -> Cut:
    """Adapts to a task and keeps its adapted parameters, but not how they came about.

    Raises:
        TypeError: `adapt` returned no tensors.
    """
    draws = random_state()
    found, spec = tree_flatten(adapt(support))
    if not found or not all(isinstance(t, Tensor) for t in found):
        raise TypeError(
            "adapt must return the adapted parameters, a tensor or a tuple, list or dict of tensors, got "
            f"{[type(t).__name__ for t in found][:3]}. The model itself goes to predict(parameters, x)."
        )
    leaves = [t.detach().requires_grad_(t.requires_grad) for t in found]
    return Cut(adapt, predict, support, leaves, spec, draws, model)
