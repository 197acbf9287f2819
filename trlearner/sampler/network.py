"""The small network that turns a task's scores into its logit."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Network(nn.Module):
    """``tanh`` between two linear layers; starts at zero, so that all tasks are alike to it.

    Args:
        scores: How many there are.
        hidden: The width in between.
        generator: Its seed is that of the first layer.
    """

    def __init__(self, scores: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(generator.initial_seed())
        self.first = nn.utils.skip_init(nn.Linear, scores, hidden)
        self.last = nn.utils.skip_init(nn.Linear, hidden, 1, bias=False)
        with torch.no_grad():
            self.first.weight.normal_(0.0, scores**-0.5, generator=noise)
            self.first.bias.uniform_(-1.0, 1.0, generator=noise)
            self.last.weight.zero_()

    def forward(self, scores: Float[Tensor, "tasks scores"]) -> Float[Tensor, " tasks"]:
        """One logit a task."""
        return self.last(torch.tanh(self.first(scores)))[:, 0]


def objective(
    logits: Float[Tensor, " tasks"],
    effects: Float[Tensor, " tasks"],
    weights: Float[Tensor, " tasks"],
    decay: float,
) -> Float[Tensor, ""]:
    """What the network descends: the held-out loss along the logits, and a pull towards uniform.

    ``sum_i w_i (c_i - sum_j w_j c_j) / |c| a_i + decay / 2 mean_i (a_i - mean a)^2``, with |c| the spread of
    the effects. Its first part has the gradient of the look-ahead where weights multiply losses, and is the
    score-function estimator of it, with a baseline, where tasks were drawn in proportion to their weights and
    then counted alike. At rest and w uniform ``a_i = -E[c_i | scores] / (|c| decay)``: scores that tell
    nothing leave the weights uniform.

    Args:
        logits: a, of the tasks of one step.
        effects: c, dL_val / dw of these tasks, up to a factor.
        weights: w, which the step gave them; they sum to 1.
        decay: How much evidence it takes.

    Example:
        >>> a = torch.zeros(2, requires_grad=True)
        >>> objective(a, torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]), 0.1).backward()
        >>> a.grad
        tensor([-0.5000,  0.5000])
    """
    centred = effects - (weights * effects).sum()
    spread = centred.square().mean().sqrt()
    scaled = torch.where(spread > 0, centred / spread, 0.0).nan_to_num(0.0, 0.0, 0.0)
    pulled = (logits - logits.mean()).square().mean()
    return (weights * scaled * logits).sum() + decay / 2 * pulled


class Trainer:
    """A network and the optimizer that trains it.

    Args:
        scores: How many there are.
        hidden: As in `Network`.
        lr: Of Adam.
        decay: As in `objective`.
        generator: As in `Network`.
    """

    def __init__(
        self, scores: int, hidden: int, lr: float, decay: float, generator: torch.Generator
    ) -> None:
        self.network = Network(scores, hidden, generator)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, foreach=True)
        self.decay = decay

    def learn(self, scores: Tensor, effects: Tensor, weights: Tensor) -> None:
        """One step down `objective`."""
        with torch.enable_grad():
            effects, weights = effects.to(scores), weights.to(scores)
            loss = objective(self.network(scores), effects, weights, self.decay)
            parameters = list(self.network.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
        self.optimizer.step()

    def logits(self, scores: Tensor) -> Tensor:
        """One a task, without a graph."""
        with torch.no_grad():
            return self.network(scores)

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of both."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
