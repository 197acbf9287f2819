"""A meta-step that the next one judges, and the gradient that judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.nested import raw
from trlearner.tasks.samples import Samples

Gradient = dict[str, Tensor]
"""Of a loss, by the names of the learner's state."""


@dataclass(frozen=True, eq=False)
class Step:
    """A meta-step that was taken.

    Attributes:
        state: The learner's parameters and buffers before it.
        batch: Its tasks, or some of them.
        weights: What it gave them; they sum to 1.
    """

    state: dict[str, Tensor]
    batch: TaskBatch
    weights: Tensor

    def to(self, device: torch.device) -> Step:
        """On a device; the weights stay where they are."""
        state = {name: t.to(device) for name, t in self.state.items()}
        return Step(state, self.batch.to(device), self.weights)

    def to_dict(self) -> dict[str, Any]:
        """As tensors and plain values, which `torch.load` reads with ``weights_only=True``."""
        batch = self.batch
        return {
            "support": [*map(raw, batch.support)],
            "query": [*map(raw, batch.query)],
            "ids": batch.ids,
            "ways": batch.ways,
            "state": dict(self.state),
            "weights": self.weights,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Step:
        """What `to_dict` made."""
        ways = saved["ways"]
        support, query = (
            Samples(x, y, mask, ways) for x, y, mask in (saved["support"], saved["query"])
        )
        batch = TaskBatch(support, query, ids=saved["ids"], ways=ways)
        return cls(saved["state"], batch, saved["weights"].cpu())


def gradient_of(learner: Learner) -> Gradient:
    """``p.grad`` of every parameter.

    Raises:
        ValueError: There is none.
    """
    trained = {n: t for n, t in learner.state().items() if t.requires_grad}
    if all(t.grad is None for t in trained.values()):
        raise ValueError(
            "reuse=True takes the batch's meta-gradient from p.grad, but no parameter of the learner has "
            "one. Call update after loss.backward() and before the optimizer steps, or leave reuse out."
        )
    return {
        n: torch.zeros_like(t) if t.grad is None else t.grad.detach().clone()
        for n, t in trained.items()
    }
