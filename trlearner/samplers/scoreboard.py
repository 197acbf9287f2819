"""The scores of tasks when they were last looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trlearner.samplers.standardize import Running, seen, standardized, start


class Scoreboard:
    """Standardized scores, each by the mean and spread of its time, so that drift cannot rank tasks.

    Args:
        tasks: Of the finite set; 0 for a stream.
        scores: How many each has.

    Attributes:
        table: ``[tasks, scores]``; 0, which is average, for a task never looked at.
        known: ``[tasks]``, true for those that were.
        last: Of the tasks looked at last, ``[tasks, scores]``.
    """

    def __init__(self, tasks: int, scores: int) -> None:
        self.running = start(scores)
        self.table = torch.zeros(tasks, scores)
        self.known = torch.zeros(tasks, dtype=torch.bool)
        self.last = torch.zeros(0, scores)

    def note(self, scores: Tensor, places: list[int] | None) -> Tensor:
        """Takes in scores ``[tasks, scores]`` of some tasks, and returns them standardized."""
        scores = scores.detach().to("cpu", self.table.dtype)
        self.running = seen(self.running, scores)
        self.last = standardized(self.running, scores)
        if places is not None:
            self.table[places], self.known[places] = self.last, True
        return self.last

    def standardize(self, scores: Tensor) -> Tensor:
        """Scores of other tasks, which leave no trace; zeros before any were taken in."""
        if self.running.updates == 0:
            return torch.zeros_like(scores, device="cpu", dtype=self.table.dtype)
        return standardized(self.running, scores.detach().to("cpu", self.table.dtype))

    def summary(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The distribution of every score over the tasks that were looked at."""
        rows = self.table[self.known] if len(self.table) > 0 else self.last
        if len(rows) == 0:
            return {}
        return {f"scores/{name}": rows[:, i].clone() for i, name in enumerate(names)}

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "running": tuple(self.running),
            "table": self.table.clone(),
            "known": self.known.clone(),
            "last": self.last.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All of it."""
        mean, square, updates = state["running"]
        self.running = Running(mean.cpu(), square.cpu(), updates)
        self.table, self.known, self.last = (
            state[name].cpu().clone() for name in ("table", "known", "last")
        )
