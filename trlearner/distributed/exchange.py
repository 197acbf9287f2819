"""Collectives that gradients pass through: whatever goes one way forward, its gradient comes back.

Gradients are *sums* over ranks: each rank computes a share of the loss, and what its tasks did to another
rank's share returns to it in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trlearner.distributed.collective import Ranks, gather_rows, send_rows
from trlearner.distributed.kind import Kind


def gate(parameters: Sequence[Tensor], fill: bool) -> tuple[Tensor, list[Tensor]]:
    """The same parameters, and a zero to add to the loss; their gradients arrive last and together.

    So whatever sums them over ranks starts after the last collective of the step, on every rank, even
    on one that has no task: the order of collectives is the same everywhere.

    Args:
        parameters: Those that are trained.
        fill: Give those that this rank has not used a gradient of zero.
    """
    zero, *same = _Gate.apply(fill, *parameters)
    return zero, same


def gather(
    ranks: Ranks, tensors: Sequence[Tensor], kinds: Sequence[Kind], counts: Sequence[int]
) -> list[Tensor]:
    """Each tensor's rows of all ranks, in one collective: ``[counts[rank], ...] -> [tasks, ...]``.

    All of those that are graded carry a graph on every rank.
    """
    # A rank without tasks has nothing that needs a gradient, but takes part in the backward pass.
    anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
    return list(_Gather.apply(ranks, tuple(kinds), tuple(counts), anchor, *tensors))


def exchange(ranks: Ranks, rows: Tensor, counts: Sequence[int]) -> Tensor:
    """What every rank has to say of this rank's tasks: ``[tasks, ...] -> [ranks, own tasks, ...]``."""
    found: Tensor = _Exchange.apply(ranks, tuple(counts), rows)
    return found


def share(local: Tensor, total: Tensor, scale: float) -> Tensor:
    """The value of `total`, with `scale` times the gradient of `local`."""
    found: Tensor = _Share.apply(scale, total, local)
    return found


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, fill: bool, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.fill = fill
        ctx.kinds = [(p.shape, p.dtype, p.device) for p in parameters]
        zero = torch.zeros((), dtype=parameters[0].dtype, device=parameters[0].device)
        # Not copies, so that a change between forward and backward is noticed.
        return zero, *(p.detach() for p in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, zero: Tensor | None, *gradients: Tensor | None) -> Any:
        if not ctx.fill:
            return None, *gradients
        filled = [
            torch.zeros(shape, dtype=dtype, device=device) if g is None else g
            for g, (shape, dtype, device) in zip(gradients, ctx.kinds, strict=True)
        ]
        return None, *filled


class _Gather(Function):
    @staticmethod
    def forward(
        ctx: Any,
        ranks: Ranks,
        kinds: tuple[Kind, ...],
        counts: tuple[int, ...],
        anchor: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.kinds, ctx.counts = ranks, kinds, counts
        found = _unpack(gather_rows(ranks, _pack(tensors), counts, "tasks"), kinds)
        ctx.mark_non_differentiable(
            *(t for t, kind in zip(found, kinds, strict=True) if not kind.graded)
        )
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ranks, counts = ctx.ranks, ctx.counts
        graded = [i for i, kind in enumerate(ctx.kinds) if kind.graded]
        rows = _pack([gradients[i] for i in graded])
        own = counts[ranks.rank]
        arrived = send_rows(ranks, rows, counts, [own] * ranks.size, "gradients of tasks")
        found: list[Tensor | None] = [None] * len(ctx.kinds)
        parts = _unpack(arrived, [ctx.kinds[i] for i in graded])
        for i, part in zip(graded, parts, strict=True):
            found[i] = part.reshape(ranks.size, own, *part.shape[1:]).sum(0)
        return None, None, None, None, *found


class _Exchange(Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, counts: tuple[int, ...], rows: Tensor) -> Tensor:
        ctx.ranks, ctx.counts = ranks, counts
        own = counts[ranks.rank]
        found = send_rows(ranks, rows, counts, [own] * ranks.size, "mixtures")
        return found.reshape(ranks.size, own, *rows.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ranks, counts = ctx.ranks, ctx.counts
        own = [counts[ranks.rank]] * ranks.size
        rows = gradient.flatten(0, 1)
        return None, None, send_rows(ranks, rows, own, counts, "gradients of mixtures")


class _Share(Function):
    @staticmethod
    def forward(ctx: Any, scale: float, total: Tensor, local: Tensor) -> Tensor:
        ctx.scale = scale
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, gradient * ctx.scale


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """Rows of any types as rows of bytes."""
    return torch.cat(
        [
            t.detach().contiguous().reshape(len(t), math.prod(t.shape[1:])).view(torch.uint8)
            for t in tensors
        ],
        1,
    )


def _unpack(rows: Tensor, kinds: Sequence[Kind]) -> list[Tensor]:
    found, first = [], 0
    for kind in kinds:
        last = first + math.prod(kind.shape) * kind.dtype.itemsize
        # A copy, for a view as another type must start where one of its numbers may start.
        part = rows[:, first:last].clone(memory_format=torch.contiguous_format)
        found.append(part.view(kind.dtype).reshape(len(rows), *kind.shape))
        first = last
    return found
