"""Dealing out the tasks of a meta-batch."""

from __future__ import annotations

import torch.distributed as dist

from trlearner.distributed.collective import Ranks
from trlearner.tasks.batch import TaskBatch


def own_tasks(batch: TaskBatch, group: dist.ProcessGroup | None = None) -> TaskBatch | None:
    """This rank's part of a batch that all ranks have: one after the other, as even as can be.

    Args:
        batch: The same on all ranks.
        group: As for `MetaStep`.

    Returns:
        Its tasks; ``None`` if there are fewer tasks than ranks and none is left for this one.

    Example:
        >>> import torch
        >>> x = torch.rand(5, 3, 1)
        >>> len(own_tasks(TaskBatch(support=(x, x), query=(x, x))))  # without other processes
        5
    """
    if not (dist.is_available() and dist.is_initialized()):
        return batch
    ranks = Ranks.of(group)
    first, last = (len(batch) * r // ranks.size for r in (ranks.rank, ranks.rank + 1))
    return batch[first:last] if last > first else None
