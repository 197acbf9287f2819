"""Functions of ours in the place of torch's, wherever a model calls these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class Instead(TorchFunctionMode):
    """Inside of it, some functions of torch are ours.

    Args:
        ours: Each by the function of torch that it stands for, and takes the arguments of.

    Example:
        >>> import torch
        >>> with Instead({torch.relu: torch.tanh}):
        ...     torch.relu(torch.tensor(-1.0)) == torch.tanh(torch.tensor(-1.0))
        tensor(True)
    """

    def __init__(self, ours: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._ours = ours

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._ours.get(func, func)(*args, **(kwargs or {}))
