"""The options of `TRLearner`, and what they must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from trlearner.base.checks import check_whole
from trlearner.relations.consistency import Mixture, Normalize

Align = Literal["none", "sinkhorn", "hungarian"] | Callable[[Tensor], Tensor]
"""A name, or ``(prototypes [tasks, classes, features]) -> [models, tasks, classes, classes]``."""
ChunkSize = int | Literal["auto"] | None
ALIGN = ("none", "sinkhorn", "hungarian")
NORMALIZE = ("sum", "softmax", "quotient")


@dataclass(frozen=True)
class Options:
    """The options of a `TRLearner`, where they are explained, but for those that change while it trains.

    Raises:
        ValueError: Naming the option, what it was and what it may be.

    Example:
        >>> Options(top_k=0)
        Traceback (most recent call last):
            ...
        ValueError: top_k must be a whole number of at least 1, or None, got 0.
    """

    normalize: Normalize = "sum"
    mixture: Mixture = "auto"
    align: Align = "none"
    top_k: int | None = None
    queries: float = 1.0
    head: str | None = None
    chunk_size: ChunkSize = None
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        share = self.queries
        if isinstance(share, bool) or not (isinstance(share, (int, float)) and 0 < share <= 1):
            raise ValueError(f"queries must be a share in (0, 1], got {share!r}.")
        check_whole("top_k", self.top_k, optional=True)
        if not (isinstance(self.chunk_size, str) and self.chunk_size == "auto"):
            check_whole("chunk_size", self.chunk_size, optional=True)
        check_whole("memory_budget", self.memory_budget, optional=True)
        if self.memory_budget is not None and self.chunk_size != "auto":
            raise ValueError(
                f"memory_budget goes with chunk_size='auto', got chunk_size={self.chunk_size!r}."
            )
        if not (self.head is None or isinstance(self.head, str)):
            raise ValueError(
                f"head must be the name of the model's last layer or None, got {self.head!r}."
            )
        names = (("normalize", NORMALIZE, True), ("mixture", get_args(Mixture), False))
        for name, choices, callables in (*names, ("align", ALIGN, True)):
            _check_choice(name, getattr(self, name), choices, callables)


def _check_choice(name: str, value: Any, choices: tuple[str, ...], callables: bool) -> None:
    if (isinstance(value, str) and value in choices) or (callables and callable(value)):
        return
    also = " or a function" if callables else ""
    raise ValueError(f"{name} must be one of {choices}{also}, got {value!r}.")
