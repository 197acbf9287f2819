"""Sinusoid regression: every task is one curve ``y = A sin(x - b)`` seen at a few points.

The family of Finn et al. 2017 (arXiv 1703.03400): amplitude A in [0.1, 5], phase b in [0, pi], x in
[-5, 5]. A pool of tasks is a fixed set of curves; points on them are drawn anew for each batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import trlearner as tr

LOW, HIGH = -5.0, 5.0
"""The interval from which all inputs are drawn."""


@dataclass(frozen=True, eq=False)
class Sinusoids:
    """Some curves.

    Args:
        amplitude: ``[tasks]``.
        phase: ``[tasks]``.

    Example:
        >>> curves = Sinusoids.draw(8, torch.Generator().manual_seed(0))
        >>> curves.points(torch.zeros(8, 3, 1)).shape
        torch.Size([8, 3, 1])
    """

    amplitude: Tensor
    phase: Tensor

    @classmethod
    def draw(cls, tasks: int, generator: torch.Generator) -> Sinusoids:
        """Curves drawn uniformly from the family."""
        amplitude = 0.1 + 4.9 * torch.rand(tasks, generator=generator)
        return cls(amplitude, math.pi * torch.rand(tasks, generator=generator))

    def __len__(self) -> int:
        return len(self.amplitude)

    def __getitem__(self, tasks: Tensor | slice) -> Sinusoids:
        """Some of the curves."""
        return Sinusoids(self.amplitude[tasks], self.phase[tasks])

    def points(self, x: Tensor) -> Tensor:
        """Every curve at its own inputs: ``[tasks, samples, 1]`` to the same shape."""
        return self.amplitude[:, None, None] * torch.sin(x - self.phase[:, None, None])

    def batch(self, shots: int, queries: int, generator: torch.Generator) -> tr.TaskBatch:
        """Fresh points on every curve: support ``[tasks, shots, 1]``, query ``[tasks, queries, 1]``."""
        x = torch.rand(len(self), shots + queries, 1, generator=generator)
        x = LOW + (HIGH - LOW) * x
        y = self.points(x)
        return tr.TaskBatch(
            support=(x[:, :shots], y[:, :shots]), query=(x[:, shots:], y[:, shots:])
        )

    def sample(self, tasks: int, generator: torch.Generator) -> Sinusoids:
        """Some of the curves, none of them twice, in random order."""
        return self[torch.randperm(len(self), generator=generator)[:tasks]]


def network(seed: int, width: int = 40) -> nn.Module:
    """The usual ReLU net 1-40-40-1, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(1, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )
