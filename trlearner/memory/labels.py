"""What is known of the labels of remembered tasks: the unit of noise, and the range of sound answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trlearner.tasks.samples import Samples

NOISE = 0.01
"""The default noise σ², as a share of the labels' variance."""

TINY = 1e-12
"""Labels vary by at least this share of their squared mean; less is rounding."""

PARTS = ("count", "mean", "squares", "low", "high")


class Labels:
    """Mean, variance and range of all remembered labels, for each output.

    Example:
        >>> y = torch.tensor([[[1.0], [3.0]]])
        >>> labels = Labels().with_these(Samples(y, y))
        >>> labels.mean, labels.variance()
        (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = self.low = self.high = torch.zeros(())

    def with_these(self, samples: Samples) -> Labels:
        """These labels and those of some tasks; class labels have neither mean nor range.

        Raises:
            ValueError: Labels of another shape are known already.
        """
        if not samples.y.is_floating_point():
            return self
        y = samples.y[samples.is_real()].double()
        made = Labels()
        made.count, made.mean = len(y), y.mean(0)
        made.squares = (y - made.mean).square().sum(0)
        made.low, made.high = torch.aminmax(y, dim=0)
        return made if not self.count else self._and(made)

    def _and(self, more: Labels) -> Labels:
        if more.mean.shape != self.mean.shape:
            raise ValueError(
                "all tasks of a memory must have labels [samples, *outputs] of one shape, got outputs "
                f"{tuple(more.mean.shape)} where {tuple(self.mean.shape)} are remembered. Keep a memory "
                "for each."
            )
        old = self.to(more.mean.device)
        made = Labels()
        made.count = self.count + more.count
        gap, share = more.mean - old.mean, more.count / made.count
        made.mean = old.mean + gap * share
        made.squares = old.squares + more.squares + gap.square() * (self.count * share)
        made.low, made.high = more.low.minimum(old.low), more.high.maximum(old.high)
        return made

    def to(self, device: torch.device) -> Labels:
        """The same on another device."""
        made = Labels()
        made.load_state_dict(
            {n: t.to(device) if isinstance(t, Tensor) else t for n, t in self.state_dict().items()}
        )
        return made

    def variance(self) -> Tensor:
        """Of the labels ``[*outputs]``; never 0, for labels that do not vary."""
        floor = TINY * self.mean.square()
        return (self.squares / max(1, self.count)).maximum(floor).clamp(min=TINY**2)

    def varying(self) -> Tensor:
        """Which outputs are no constants ``[*outputs]``."""
        return self.squares / max(1, self.count) > TINY * self.mean.square()

    def state_dict(self) -> dict[str, Tensor | int]:
        """What is known, as tensors and a number."""
        return {name: getattr(self, name) for name in PARTS}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """What `state_dict` returned."""
        for name in PARTS:
            setattr(self, name, state[name])
