"""Scores in units of their own spread, and what they were when a task was last looked at."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

HORIZON = 20
"""So many looks back the mean and the spread reach, for scores drift as a learner learns."""
LIMIT = 4.0
"""No task lies further from the mean than this, in standard deviations."""


class Scoreboard(nn.Module):
    """Standardized scores, each by the mean and spread of its time, so that drift cannot rank tasks.

    Args:
        tasks: Of the finite set; 0 for a stream.
        scores: How many each has.

    Attributes:
        mean: Of each score over tasks seen of late, ``[scores]``.
        square: The mean square, ``[scores]``.
        looks: How many there have been.
        table: ``[tasks, scores]``; 0, which is average, for a task never looked at.
        known: ``[tasks]``, true for those that were.
        last: Of the tasks looked at last, ``[tasks, scores]``.

    Example:
        >>> board = Scoreboard(2, 2)
        >>> board.note(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), [0, 1])
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """

    mean: Tensor
    square: Tensor
    looks: Tensor
    table: Tensor
    known: Tensor

    def __init__(self, tasks: int, scores: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(scores))
        self.register_buffer("square", torch.zeros(scores))
        self.register_buffer("looks", torch.tensor(0))
        self.register_buffer("table", torch.zeros(tasks, scores))
        self.register_buffer("known", torch.zeros(tasks, dtype=torch.bool))
        self.last = torch.zeros(0, scores)

    def note(self, scores: Float[Tensor, "tasks scores"], places: list[int] | None) -> Tensor:
        """Takes in scores of some tasks, and returns them standardized.

        The mean over looks is plain at first, and exponential from `HORIZON` on. Tasks are left out of it
        whose scores, or their squares, are not finite.
        """
        scores = scores.detach().to(self.table)
        good = scores[scores.square().isfinite().all(1)]
        if len(good) > 0:
            self.looks += 1
            step = 1 / min(int(self.looks), HORIZON)
            self.mean.lerp_(good.mean(0), step)
            self.square.lerp_(good.square().mean(0), step)
        self.last = self.standardize(scores)
        if places is not None:
            self.table[places], self.known[places] = self.last, True
        return self.last

    def standardize(self, scores: Float[Tensor, "tasks scores"]) -> Tensor:
        """``(score - mean) / spread``, within `LIMIT`; 0 for what is not finite or does not vary.

        Zeros before any scores were taken in.
        """
        scores = scores.detach().to(self.table)
        variance = self.square - self.mean.square()
        # Below this, a difference is rounding.
        varies = variance > 1e-6 * self.square
        spread = torch.where(varies, variance, 1.0).sqrt()
        found = torch.where(varies, (scores - self.mean) / spread, 0.0)
        return found.nan_to_num(0.0, 0.0, 0.0).clamp(-LIMIT, LIMIT)

    def summary(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The distribution of every score over the tasks that were looked at."""
        rows = self.table[self.known] if len(self.table) > 0 else self.last
        if len(rows) == 0:
            return {}
        return {f"scores/{name}": rows[:, i].clone() for i, name in enumerate(names)}
