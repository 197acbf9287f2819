"""Which queries the relation term asks about."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trlearner.tasks.samples import Samples


def query_keys(share: float, tasks: int, total: int, generator: torch.Generator) -> Tensor | None:
    """A random number for each query ``[tasks, queries]``; ``None`` where all are used.

    Args:
        share: Of each task's queries that is used.
        tasks: How many there are.
        total: Of queries of each task.
        generator: Draws.
    """
    if math.ceil(share * total) == total:
        return None
    return torch.rand(tasks, total, generator=generator, device=generator.device)


def choose_queries(share: float, keys: Tensor, query: Samples) -> Tensor:
    """The share of queries with the lowest keys ``[tasks, chosen]``, real ones first."""
    keys = keys.to(query.x.device, non_blocking=True)  # the other way it would be unsafe
    if query.mask is not None:
        keys = torch.where(query.mask, keys, 2.0)
    return keys.argsort(1)[:, : math.ceil(share * query.x.shape[1])]
