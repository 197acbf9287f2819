"""What ranks send to each other, by rows of tasks; gradients go back the way that the rows came.

Gradients are *sums* over ranks: each rank computes a share of the loss, and what its tasks did to another
rank's share returns to it in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trlearner.distributed.lost_rank import explained
from trlearner.distributed.ranks import Ranks

# ---- without gradients -------------------------------------------------------------------------------


def tell(ranks: Ranks, value: Any) -> list[Any]:
    """Every rank's value, of any kind; for what happens rarely."""
    found: list[Any] = [None] * ranks.size
    with explained("telling each other"):
        dist.all_gather_object(found, value, group=ranks.group)
    return found


def collective(ranks: Ranks, name: str, what: str, values: Tensor, *arguments: Any) -> Tensor:
    """A functional collective, under a name that does not change between versions of torch.

    Args:
        ranks: Who takes part.
        name: Of the collective.
        what: It does, for an error.
        values: Of this rank.
        *arguments: Of the collective, between the values and the group.
    """
    ops = torch.ops._c10d_functional
    with explained(what):
        found = getattr(ops, name)(values.contiguous(), *arguments, ranks.group.group_name)
        return ops.wait_tensor(found)


def gather_rows(
    ranks: Ranks, rows: Tensor, purpose: str, counts: Sequence[int] | None = None
) -> Tensor:
    """Every rank's rows in the order of ranks, ``[sum(counts), ...]``; by default one row of each."""
    counts = [1] * ranks.size if counts is None else counts
    most = max(counts)
    rows = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    found = collective(ranks, "all_gather_into_tensor", f"gathering {purpose}", rows, ranks.size)
    return torch.cat([part[:count] for part, count in zip(found.split(most), counts, strict=True)])


def send_rows(
    ranks: Ranks, rows: Tensor, to: Sequence[int], of: Sequence[int], purpose: str
) -> Tensor:
    """Rows to every rank, and every rank's rows for this one: ``[sum(to), ...] -> [sum(of), ...]``."""
    what = f"exchanging {purpose}"
    return collective(ranks, "all_to_all_single", what, rows, list(of), list(to))


# ---- with gradients ----------------------------------------------------------------------------------


def gather(ranks: Ranks, *tensors: Tensor) -> list[Tensor]:
    """Each tensor's rows of all ranks, in one collective: ``[own tasks, ...] -> [tasks, ...]``.

    The first carries a graph whether it needs one or not, so that all ranks take part in the backward pass.
    """
    anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
    return list(_Gather.apply(ranks, anchor, *tensors))


def exchange(ranks: Ranks, rows: Tensor) -> Tensor:
    """What every rank has to say of this rank's tasks: ``[tasks, ...] -> [ranks, own tasks, ...]``."""
    found: Tensor = _Exchange.apply(ranks, rows)
    return found


def gate(parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same parameters, and a zero to add to the loss; their gradients arrive last and together.

    So DDP starts to sum them after the last collective of the step, on every rank: the order of collectives
    is the same everywhere. A parameter that this rank has not used has a gradient of zero, for DDP waits
    for one.
    """
    zero, *same = _Gate.apply(*parameters)
    return zero, same


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.like = ranks, [t.detach().to("meta") for t in tensors]
        ctx.graded = [i for i, t in enumerate(tensors) if i == 0 or t.requires_grad]
        found = _unpack(gather_rows(ranks, _pack(tensors), "tasks", ranks.counts), ctx.like)
        ctx.mark_non_differentiable(*(t for i, t in enumerate(found) if i not in ctx.graded))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows = _pack([gradients[i] for i in ctx.graded])
        arrived = _to_owners(ctx.ranks, rows, "gradients of tasks")
        found: list[Tensor | None] = [None] * len(ctx.like)
        parts = _unpack(arrived.flatten(0, 1), [ctx.like[i] for i in ctx.graded])
        for i, part in zip(ctx.graded, parts, strict=True):
            found[i] = part.unflatten(0, arrived.shape[:2]).sum(0)
        return None, None, *found


class _Exchange(Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, rows: Tensor) -> Tensor:
        ctx.ranks = ranks
        return _to_owners(ranks, rows, "mixtures")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ranks, purpose = ctx.ranks, "gradients of mixtures"
        own = [gradient.shape[1]] * ranks.size
        return None, send_rows(ranks, gradient.flatten(0, 1), own, ranks.counts, purpose)


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> tuple[Tensor, ...]:
        zero = torch.zeros((), dtype=parameters[0].dtype, device=parameters[0].device)
        # Not copies, so that a change between forward and backward is noticed.
        return zero, *(p.detach() for p in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, zero: Tensor, *gradients: Tensor) -> Any:
        return gradients


def _to_owners(ranks: Ranks, rows: Tensor, purpose: str) -> Tensor:
    """A row about each task, sent to where the task is: ``[tasks, ...] -> [ranks, own tasks, ...]``."""
    own = ranks.counts[ranks.rank]
    found = send_rows(ranks, rows, ranks.counts, [own] * ranks.size, purpose)
    return found.unflatten(0, (ranks.size, own))


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """Rows of any types as rows of bytes."""
    rows = [t.detach().contiguous().flatten(1).view(torch.uint8) for t in tensors]
    return torch.cat(rows, 1)


def _unpack(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Rows of bytes as the tensors that were packed."""
    parts = rows.split([t[0].numel() * t.element_size() for t in like], 1)
    # Copies, for a view as another type must start where one of its numbers may start.
    copies = [part.clone(memory_format=torch.contiguous_format) for part in parts]
    return [p.view(t.dtype).reshape(-1, *t.shape[1:]) for p, t in zip(copies, like, strict=True)]
