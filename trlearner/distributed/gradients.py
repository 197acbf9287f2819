"""Gradients and parameters of all ranks, without DDP."""

from __future__ import annotations

import weakref

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trlearner.distributed.collective import Ranks, gather_rows, sum_over_ranks
from trlearner.distributed.failure import explained

reduced_by: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Who brings the gradients of a learner's last step together: ``"ddp"`` or nobody yet, ``"you"``."""


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
    ranks = _ranks(group)
    if any(reduced_by.get(part) == "ddp" for module in modules for part in module.modules()):
        raise ValueError(
            "DistributedDataParallel has already brought these gradients together in backward(); "
            "summing them again would multiply them by the number of ranks. Leave sync_gradients out, or "
            "call the MetaStep itself rather than the DDP around it."
        )
    parameters = list(dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad))
    if not parameters:
        return
    has = torch.tensor([[p.grad is not None for p in parameters]], device=ranks.device)
    anywhere = gather_rows(ranks, has.byte(), [1] * ranks.size, "headers").amax(0).tolist()
    used = [p for p, any_rank in zip(parameters, anywhere, strict=True) if any_rank]
    for kind in dict.fromkeys((p.dtype, p.device) for p in used):
        alike = [p for p in used if (p.dtype, p.device) == kind]
        rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
        flat = torch.cat([g.detach().flatten() for g in rows])
        flat = sum_over_ranks(ranks, flat, "gradients")
        for p, part in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
            _set_gradient(p, part.view_as(p))


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
    ranks = _ranks(group)
    with torch.no_grad(), explained("broadcasting parameters"):
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, group_src=source, group=ranks.group)


def _ranks(group: dist.ProcessGroup | None) -> Ranks:
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "there is no process group. Call torch.distributed.init_process_group('gloo') first ('nccl' "
            "on GPUs), in every process; torchrun sets what it needs."
        )
    return Ranks.of(group)


def _set_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = value.clone()
    else:
        parameter.grad.copy_(value)
