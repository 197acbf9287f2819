"""The processes that share a meta-batch, and which of its tasks each has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from trlearner.tasks.batch import TaskBatch


@dataclass(frozen=True)
class Ranks:
    """The processes that share a meta-batch, and which of them this is."""

    group: dist.ProcessGroup
    rank: int
    size: int
    counts: tuple[int, ...] = ()  # how many tasks each has, once that is known

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ranks:
        """Of a process group, by default of all processes.

        Raises:
            ValueError: There is no process group.
        """
        if not connected():
            raise ValueError(
                "there is no process group. Call torch.distributed.init_process_group('gloo') first "
                "('nccl' on GPUs), in every process; torchrun sets what it needs."
            )
        group = dist.group.WORLD if group is None else group
        assert group is not None
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    @property
    def own(self) -> slice:
        """This rank's tasks among those of all ranks."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    @property
    def device(self) -> torch.device:
        """Where small tensors of ours must be for the backend to take them."""
        if dist.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def connected() -> bool:
    """Whether this process is one of a process group."""
    return dist.is_available() and dist.is_initialized()


def own_tasks(batch: TaskBatch, group: dist.ProcessGroup | None = None) -> TaskBatch:
    """This rank's part of a batch that all ranks have: one after the other, as even as can be.

    Args:
        batch: The same on all ranks.
        group: As for `MetaStep`.

    Raises:
        ValueError: There are fewer tasks than ranks.

    Example:
        >>> x = torch.rand(5, 3, 1)
        >>> len(own_tasks(TaskBatch(support=(x, x), query=(x, x))))  # without other processes
        5
    """
    if not connected():
        return batch
    ranks = Ranks.of(group)
    if len(batch) < ranks.size:
        raise ValueError(
            f"a meta-batch must have at least one task for each rank, got {len(batch)} for {ranks.size} "
            f"ranks. Use meta-batches of at least {ranks.size} tasks, or start {len(batch)} processes "
            "at most."
        )
    first, last = (len(batch) * r // ranks.size for r in (ranks.rank, ranks.rank + 1))
    return batch[first:last]
