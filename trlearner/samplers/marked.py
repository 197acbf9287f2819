"""A meta-step remembered until its effect shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trlearner.base.types import State
from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.samples import Samples


@dataclass(frozen=True, eq=False)
class Marked:
    """What a look-ahead needs of a step that was taken.

    Attributes:
        state: theta, the learner's parameters and buffers before the step.
        batch: Its tasks, or some of them.
        weights: What the step gave them; they sum to 1.
    """

    state: dict[str, Tensor]
    batch: TaskBatch
    weights: Tensor

    def to(self, device: torch.device) -> Marked:
        """On a device; the weights stay where they are."""
        state = {name: t.to(device) for name, t in self.state.items()}
        return Marked(state, self.batch.to(device), self.weights)

    def to_dict(self) -> dict[str, Any]:
        """As tensors and plain values."""
        batch = self.batch
        parts = {
            name: [part.x, part.y, part.mask]
            for name, part in (("support", batch.support), ("query", batch.query))
        }
        return {
            **parts,
            "ids": batch.ids,
            "ways": batch.ways,
            "state": dict(self.state),
            "weights": self.weights,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Marked:
        """What `to_dict` made."""
        support, query = (
            Samples(x, y, mask, saved["ways"])
            for x, y, mask in (saved[name] for name in ("support", "query"))
        )
        batch = TaskBatch(support, query, ids=saved["ids"], ways=saved["ways"])
        return cls(saved["state"], batch, saved["weights"].cpu())


def mark(
    learner: Learner, batch: TaskBatch, weights: Tensor, share: float, generator: torch.Generator
) -> Marked:
    """Remembers a step on a batch, or on a random share of its tasks, two at the least.

    Args:
        learner: Before the step.
        batch: Its tasks.
        weights: What it gives them.
        share: Of the tasks, to remember.
        generator: Draws them.
    """
    count = min(len(batch), max(2, round(share * len(batch))))
    if count < len(batch):
        device = generator.device
        chosen = (
            torch.randperm(len(batch), generator=generator, device=device)[:count].sort().values
        )
        batch, weights = batch[chosen.tolist()], weights.cpu()[chosen.cpu()]
    state = {name: tensor.detach().clone() for name, tensor in learner.state().items()}
    return Marked(state, batch, (weights / weights.sum()).cpu())


class Waiting:
    """A marked step whose successor's gradient is on its way: it is noted when backward has passed.

    Args:
        marked: The step.
        learner: Whose gradient it is.
        state: The successor's views of the learner's parameters. A hook on a parameter itself would stay
            after the step, and would meet every gradient that anybody takes of the parameter.
    """

    def __init__(self, marked: Marked, learner: Learner, state: State) -> None:
        self.marked, self.learner = marked, learner
        self.direction: dict[str, Tensor] | None = None
        trained = {n: t for n, t in state.items() if t.requires_grad}
        # The hooks must not hold the views that hold them.
        values = {n: t.detach() for n, t in trained.items()}

        def note(gradients: Any) -> None:
            pairs = zip(values.items(), gradients, strict=True)
            self.direction = {
                n: torch.zeros_like(t) if g is None else g.detach().clone() for (n, t), g in pairs
            }

        self._handle = torch.autograd.graph.register_multi_grad_hook(list(trained.values()), note)

    def remove(self) -> None:
        """Waits no longer."""
        self._handle.remove()


def gradients_of(learner: Learner) -> dict[str, Tensor]:
    """``p.grad`` of every parameter, by the state's names.

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
