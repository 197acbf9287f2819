"""The two collectives that the meta-step is made of, by rows of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trlearner.distributed.failure import explained
from trlearner.distributed.traffic import counted


@dataclass(frozen=True)
class Ranks:
    """The processes that share a meta-batch, and which of them this is."""

    group: dist.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ranks:
        """Of a process group, by default of all processes."""
        group = dist.group.WORLD if group is None else group
        assert group is not None
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    @property
    def device(self) -> torch.device:
        """Where small tensors of ours must be for the backend to take them."""
        if dist.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def gather_rows(ranks: Ranks, rows: Tensor, counts: Sequence[int], purpose: str) -> Tensor:
    """Every rank's rows in the order of ranks: ``[counts[rank], ...] -> [sum(counts), ...]``."""
    most = max(counts)
    padded = rows
    if len(rows) < most:
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    one = padded.numel() * padded.element_size()
    counted().add(purpose, one * (ranks.size - 1), one * (ranks.size - 1))
    with explained(f"gathering {purpose}"):
        found = _ops().all_gather_into_tensor(
            padded.contiguous(), ranks.size, ranks.group.group_name
        )
        found = _ops().wait_tensor(found)
    if min(counts) == most:
        return found
    return torch.cat([found[r * most : r * most + count] for r, count in enumerate(counts)])


def send_rows(
    ranks: Ranks, rows: Tensor, to: Sequence[int], of: Sequence[int], purpose: str
) -> Tensor:
    """Rows to every rank, and every rank's rows for this one: ``[sum(to), ...] -> [sum(of), ...]``."""
    one = math.prod(rows.shape[1:]) * rows.element_size()
    me = ranks.rank
    counted().add(purpose, one * (sum(to) - to[me]), one * (sum(of) - of[me]))
    with explained(f"exchanging {purpose}"):
        found = _ops().all_to_all_single(
            rows.contiguous(), list(of), list(to), ranks.group.group_name
        )
        return _ops().wait_tensor(found)


def sum_over_ranks(ranks: Ranks, values: Tensor, purpose: str) -> Tensor:
    """The sum of every rank's values, the same bits on all ranks."""
    share = 2 * (ranks.size - 1) * values.numel() * values.element_size() // ranks.size
    counted().add(purpose, share, share)
    with explained(f"summing {purpose}"):
        found = _ops().all_reduce(values.contiguous(), "sum", ranks.group.group_name)
        return _ops().wait_tensor(found)


def _ops():  # type: ignore[no-untyped-def]
    # The functional collectives, under the names that do not change between versions of torch.
    return torch.ops._c10d_functional
