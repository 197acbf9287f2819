"""The small network that turns a task's scores into its logit."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MEMORY = 256
"""So many look-aheads the network learns from: a single one is mostly noise."""
RECENT = 64
"""By so many of the latest it is judged whether the network foretells effects."""
BOUND = 1.5
"""Weights differ 20-fold at most: if a kind of tasks vanished, nothing would tell of its worth."""
FEWEST = 8
"""Before it has foretold so many, it is not believed at all."""


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
        """One logit a task, between `-BOUND` and `BOUND`."""
        return BOUND * torch.tanh(self.last(torch.tanh(self.first(scores)))[:, 0] / BOUND)


def pulls(
    effects: Float[Tensor, " tasks"], weights: Float[Tensor, " tasks"]
) -> Float[Tensor, " tasks"]:
    """How each logit of a step's tasks pulls on the held-out loss: ``w_i (c_i - sum_j w_j c_j) / |c|``.

    It is the look-ahead's gradient where weights multiply losses, and its score-function estimate, with a
    baseline, where tasks were drawn in proportion to their weights and then counted alike.

    Args:
        effects: c, dL_val / dw of the tasks, up to a factor.
        weights: w, which the step gave them; they sum to 1.

    Returns:
        In units of the effects' spread |c|; zeros where they do not differ.

    Example:
        >>> pulls(torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]))
        tensor([-0.5000,  0.5000])
    """
    centred = effects - (weights * effects).sum()
    spread = centred.square().mean().sqrt()
    scaled = torch.where(spread > 0, centred / spread, 0.0)
    return weights * scaled.nan_to_num(0.0, 0.0, 0.0)


def objective(
    logits: Float[Tensor, "steps tasks"], pull: Float[Tensor, "steps tasks"], decay: float
) -> Float[Tensor, ""]:
    """What the network descends, over recent steps: ``sum_i pull_i a_i + decay / 2 mean_i (a_i - mean a)^2``.

    At rest ``a_i = -E[c_i | scores] / (|c| decay)`` about their mean, where w is uniform: scores that tell
    nothing of effects leave the weights alike.

    Args:
        logits: a, of every step's tasks.
        pull: See `pulls`.
        decay: How much evidence it takes.
    """
    centred = logits - logits.mean(1, keepdim=True)
    return (pull * logits).sum(1).mean() + decay / 2 * centred.square().mean()


def trust(gains: Float[Tensor, " steps"], sizes: Float[Tensor, " steps"], decay: float) -> float:
    """How much of what the network says to believe: 1 if it foretells effects, 0 if it does not.

    The factor k that makes k a best on steps that it had not learned from, less two standard errors::

        k = (mean g - 2 std g / sqrt n) / (decay mean s),  g = -sum_i pull_i a_i,  s = mean_i (a_i - mean a)^2

    Args:
        gains: g of each such step.
        sizes: s of each.
        decay: See `objective`.

    Example:
        >>> trust(torch.full((9,), 0.3), torch.ones(9), decay=0.2)
        1.0
        >>> trust(torch.tensor([0.3, -0.3] * 9), torch.ones(18), decay=0.2)
        0.0
    """
    if len(gains) < FEWEST or not sizes.mean() > 0:
        return 0.0
    sure = gains.mean() - 2 * gains.std() / len(gains) ** 0.5
    return float((sure / (decay * sizes.mean())).clamp(0, 1))


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
        self.memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
        self.foretold: deque[tuple[float, float]] = deque(maxlen=RECENT)

    @property
    def trust(self) -> float:
        """How far the network has foretold effects of late; see `trust`."""
        if not self.foretold:
            return 0.0
        gains, sizes = torch.tensor(list(self.foretold)).unbind(1)
        return trust(gains, sizes, self.decay)

    def learn(self, scores: Tensor, effects: Tensor, weights: Tensor) -> None:
        """One step down `objective`, over the last `MEMORY` look-aheads of as many tasks."""
        pull = pulls(effects.to(scores), weights.to(scores))
        said = self.network(scores).detach()
        size = (said - said.mean()).square().mean()
        self.foretold.append((float(-(pull * said).sum()), float(size)))
        if self.memory and self.memory[-1][1].shape != pull.shape:
            self.memory.clear()
        self.memory.append((scores, pull))
        seen, pulled = (torch.stack(part) for part in zip(*self.memory, strict=True))
        with torch.enable_grad():
            logits = self.network(seen.flatten(0, 1)).unflatten(0, pulled.shape)
            loss = objective(logits, pulled, self.decay)
            parameters = list(self.network.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
        self.optimizer.step()

    def logits(self, scores: Tensor) -> Tensor:
        """One a task, as far as the network is to be trusted; without a graph."""
        with torch.no_grad():
            return self.trust * self.network(scores)

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": list(self.memory),
            "foretold": list(self.foretold),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of both."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory = deque(state["memory"], maxlen=MEMORY)
        self.foretold = deque(state["foretold"], maxlen=RECENT)
