"""From the device to NumPy, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def fetch(wanted: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as arrays of one kind of float; the device is waited for once.

    Args:
        wanted: Of any shapes, on one device.

    Example:
        >>> fetch({"a": torch.tensor(1.5), "b": torch.tensor([2, 3])})
        {'a': array(1.5, dtype=float32), 'b': array([2., 3.], dtype=float32)}
    """
    if not wanted:
        return {}
    wide = any(t.dtype == torch.float64 for t in wanted.values())
    dtype = torch.float64 if wide else torch.float32
    flat = torch.cat([t.detach().reshape(-1).to(dtype) for t in wanted.values()]).cpu()
    parts = flat.split([t.numel() for t in wanted.values()])
    shapes = [t.shape for t in wanted.values()]
    return {
        name: part.reshape(shape).numpy()
        for name, part, shape in zip(wanted, parts, shapes, strict=True)
    }
