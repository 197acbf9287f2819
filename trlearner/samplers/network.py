"""The small network that turns a task's scores into its logit."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MEMORY = 1024
"""So many look-aheads the network learns from, and is judged by: a single one is mostly noise."""
BOUND = 1.5
"""Weights differ 20-fold at most: if a kind of tasks vanished, nothing would tell of its worth."""
FEWEST = 8
"""Before it has foretold so many, it is not believed at all."""


def pulls(
    effects: Float[Tensor, " tasks"], weights: Float[Tensor, " tasks"]
) -> Float[Tensor, " tasks"]:
    """How each logit of a step's tasks pulls on the held-out loss: ``w_i (c_i - sum_j w_j c_j) / |c|``.

    The effects c are dL_val / dw, and |c| is their spread; the weights w sum to 1. It is the look-ahead's
    gradient where weights multiply losses, and its score-function estimate, with a baseline, where tasks were
    drawn in proportion to their weights and then counted alike. Zeros where effects do not differ.

    Example:
        >>> pulls(torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]))
        tensor([-0.5000,  0.5000])
    """
    centred = effects - (weights * effects).sum()
    spread = centred.square().mean().sqrt()
    scaled = torch.where(spread > 0, centred / spread, 0.0)
    return weights * scaled.nan_to_num(0.0, 0.0, 0.0)


def objective(
    logits: Float[Tensor, " tasks"], pull: Float[Tensor, " tasks"], steps: int, decay: float
) -> Float[Tensor, ""]:
    """What the network descends: ``sum_i pull_i a_i / steps + decay / 2 mean_i (a_i - mean a)^2``.

    At rest ``a_i = -E[c_i | scores] / (|c| decay)`` about their mean, where w is uniform: scores that tell
    nothing of effects leave the weights alike. The logits a are those of all tasks of recent steps.
    """
    spread = (logits - logits.mean()).square().mean()
    return (pull * logits).sum() / steps + decay / 2 * spread


def trust(gains: Float[Tensor, " steps"]) -> float:
    """How much of what the network says to believe: 0 unless it has foretold effects, 1 if always.

    ``1 - (se / mean)^2`` of the gains, where `se` is the standard error of their mean; 0 where that is
    less than a standard error above 0 (the positive part of James and Stein 1961). The gain of a step that
    the network had not learned from, ``-sum_i pull_i a_i``, is positive where logits pointed the right way.

    Example:
        >>> trust(torch.full((9,), 0.3))
        1.0
        >>> trust(torch.tensor([0.3, -0.3] * 9))
        0.0
    """
    if len(gains) < FEWEST or not gains.mean() > 0:
        return 0.0
    error = gains.std() / len(gains) ** 0.5
    return float((1 - (error / gains.mean()).square()).clamp(min=0))


class Trainer:
    """The network ``tanh`` between two linear layers, and the optimizer that trains it.

    It starts at zero, so that all tasks are alike to it.

    Args:
        scores: How many there are.
        hidden: The width in between.
        lr: Of Adam.
        decay: As in `objective`.
        generator: Its seed is that of the first layer.
    """

    def __init__(
        self, scores: int, hidden: int, lr: float, decay: float, generator: torch.Generator
    ) -> None:
        noise = torch.Generator().manual_seed(generator.initial_seed())
        first = nn.utils.skip_init(nn.Linear, scores, hidden)
        last = nn.utils.skip_init(nn.Linear, hidden, 1, bias=False)
        with torch.no_grad():
            first.weight.normal_(0.0, scores**-0.5, generator=noise)
            first.bias.uniform_(-1.0, 1.0, generator=noise)
            last.weight.zero_()
        self.layers = nn.Sequential(first, nn.Tanh(), last)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=lr, foreach=True)
        self.decay = decay
        self.memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=MEMORY)

    def network(self, scores: Float[Tensor, "tasks scores"]) -> Float[Tensor, " tasks"]:
        """One logit a task, between `-BOUND` and `BOUND`."""
        return BOUND * torch.tanh(self.layers(scores)[:, 0] / BOUND)

    @property
    def trust(self) -> float:
        """How far the network has foretold effects of late; see `trust`."""
        return trust(torch.tensor([gain for *_, gain in self.memory]))

    def learn(self, scores: Tensor, effects: Tensor, weights: Tensor) -> None:
        """One step down `objective`, over the last `MEMORY` look-aheads."""
        pull = pulls(effects.to(scores), weights.to(scores))
        with torch.no_grad():
            gain = -float(pull @ self.network(scores))
        self.memory.append((scores, pull, gain))
        seen = torch.cat([seen for seen, _, _ in self.memory])
        pulled = torch.cat([pulled for _, pulled, _ in self.memory])
        self.optimizer.zero_grad()
        with torch.enable_grad():
            objective(self.network(seen), pulled, len(self.memory), self.decay).backward()
        self.optimizer.step()

    def logits(self, scores: Tensor) -> Tensor:
        """One a task, as far as the network is to be trusted; without a graph."""
        with torch.no_grad():
            return self.trust * self.network(scores)

    def state_dict(self) -> dict[str, Any]:
        """All of it; what is learned later leaves it as it is."""
        return {
            "network": copy.deepcopy(self.layers.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "memory": list(self.memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All of it."""
        self.layers.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.memory.clear()
        self.memory.extend(
            (scores.cpu(), pull.cpu(), gain) for scores, pull, gain in state["memory"]
        )
