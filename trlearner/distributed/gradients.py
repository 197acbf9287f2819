"""Gradients and parameters of all ranks, without DDP."""

from __future__ import annotations

import weakref

import torch
import torch.distributed as dist
from torch import nn

from trlearner.distributed.collectives import collective, gather_rows
from trlearner.distributed.lost_rank import explained
from trlearner.distributed.ranks import Ranks

summed_by_ddp: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Learners whose last step was taken inside of DDP, which sums their gradients."""


def sync_gradients(*modules: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Sums the gradients of all ranks into every rank's ``.grad``; call it before the optimizer's step.

    A parameter that has a gradient on some ranks gets the sum of these everywhere; one that has none on
    any rank keeps none. Gradients are those of one rank with all tasks.

    Args:
        *modules: Whose parameters: the learner and the regularizer, as for the optimizer.
        group: The processes, as for `MetaStep`; by default all.

    Raises:
        ValueError: There is no process group, or DDP has summed these gradients already.
        LostRank: Another rank is gone.
    """
    ranks = Ranks.of(group)
    if any(part in summed_by_ddp for module in modules for part in module.modules()):
        raise ValueError(
            "DistributedDataParallel has already brought these gradients together in backward(); "
            "summing them again would multiply them by the number of ranks. Leave sync_gradients out, or "
            "call the MetaStep itself rather than the DDP around it."
        )
    parameters = list(dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad))
    if not parameters:
        return
    has = torch.tensor([[p.grad is not None for p in parameters]], device=ranks.device)
    anywhere = gather_rows(ranks, has.byte(), "headers").amax(0).tolist()
    used = [p for p, any_rank in zip(parameters, anywhere, strict=True) if any_rank]
    for kind in dict.fromkeys((p.dtype, p.device) for p in used):
        alike = [p for p in used if (p.dtype, p.device) == kind]
        rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
        flat = torch.cat([g.detach().flatten() for g in rows])
        flat = collective(ranks, "all_reduce", "summing gradients", flat, "sum")
        for p, part in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
            if p.grad is None:
                p.grad = part.view_as(p).clone()
            else:
                p.grad.copy_(part.view_as(p))


def broadcast(*modules: nn.Module, source: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Gives every rank the parameters and buffers of one; once, before training without DDP.

    Args:
        *modules: The learner and the regularizer.
        source: Whose, by its rank in the group.
        group: As for `MetaStep`.

    Raises:
        ValueError: There is no process group.
        LostRank: Another rank is gone.
    """
    ranks = Ranks.of(group)
    with torch.no_grad(), explained("broadcasting parameters"):
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, group_src=source, group=ranks.group)
