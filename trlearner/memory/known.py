"""The samples of known tasks: all of them together, or split at random."""

from __future__ import annotations

import torch
from torch import Tensor

from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.nested import Nested, shown
from trlearner.tasks.samples import Pair, Samples, concatenated, samples_of

Tasks = TaskBatch | Samples | Pair

SEED = 240_908_474
"""Not 0 or 1, by which users draw their inputs: samples would then be chosen by their inputs."""


def own_generator() -> torch.Generator:
    """Draws the same whenever it is made, and leaves no trace in the global random state."""
    return torch.Generator().manual_seed(SEED)


def all_samples(tasks: Tasks) -> Samples:
    """All samples of known tasks: of a batch, support and queries."""
    if not isinstance(tasks, TaskBatch):
        samples = samples_of("tasks", tasks)
        check_one_target(samples)
        return samples
    check_one_target(tasks.support)
    s, q = tasks.support, tasks.query
    mask = None
    if s.mask is not None or q.mask is not None:
        mask = torch.cat([s.is_real(), q.is_real()], 1)
    return concatenated(s, q, mask)


def check_one_target(samples: Samples) -> None:
    """Refuse targets of several tensors: a memory weighs answers by how they fit targets, number by number.

    Raises:
        ValueError: Saying how to join them.
    """
    if isinstance(samples.y, Nested):
        raise ValueError(
            f"a memory needs targets in one tensor, got y {shown(samples.y)}. Join them on their last axis, "
            "and what the model returns with them: call=lambda model, x: torch.cat(model(x), -1)."
        )


def split(samples: Samples, counts: Tensor) -> tuple[Samples, Samples]:
    """So many random samples of each task, and the others.

    Args:
        samples: The tasks'.
        counts: How many of each ``[tasks]``; fewer than it has, or nothing would remain.

    Example:
        >>> x = torch.arange(6.0).reshape(1, 6, 1)
        >>> some, others = split(Samples(x, x), torch.tensor([2]))
        >>> some.x.shape, others.x.shape
        (torch.Size([1, 2, 1]), torch.Size([1, 4, 1]))
    """
    keys = torch.rand(samples.x.shape[:2], generator=own_generator())
    order = samples.choose(_in_order(samples, keys))
    most = int(counts.max())
    if samples.mask is None and bool((counts == most).all()):
        parts = (slice(None, most), slice(most, None))
        some, others = (
            Samples.unchecked(order.x[:, p], order.y[:, p], None, samples.ways) for p in parts
        )
        return some, others
    place = torch.arange(order.x.shape[1], device=order.x.device)
    first = place < counts[:, None].to(place.device)
    some = Samples(order.x[:, :most], order.y[:, :most], first[:, :most], samples.ways)
    rest = order.is_real() & ~first
    return some, Samples(order.x, order.y, rest, samples.ways)


def at_most(samples: Samples, count: int) -> Samples:
    """So many random samples of each task, or all where it has no more; at the same places of each."""
    width = samples.x.shape[1]
    if width <= count:
        return samples
    keys = torch.rand(width, generator=own_generator())
    return samples.choose(_in_order(samples, keys.expand(len(samples), width))[:, :count])


def _in_order(samples: Samples, keys: Tensor) -> Tensor:
    """Positions of each task's samples ``[tasks, samples]``: real ones by their keys, then padding."""
    real = samples.is_real()
    return torch.where(real, keys.to(real.device), 2.0).argsort(1)


def held_out(samples: Samples, share: float) -> tuple[Samples, Samples] | None:
    """What tasks learn from and what they are judged by; ``None`` where some task has too few samples."""
    counts = (share * samples.is_real().sum(1)).floor().long()
    if bool((counts < 1).any()):
        return None
    held, learned = split(samples, counts)
    return learned, held
