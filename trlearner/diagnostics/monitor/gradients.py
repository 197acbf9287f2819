"""Does the relation term pull where the learner's own loss pulls?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def products(loss: Tensor, own: Tensor, lam: float, trained: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inner products of the gradients of the own loss and of λ · L_TR.

    The latter is the difference of the gradients of the whole loss and of the own one, so an engine that
    knows no other gradient than that of the whole will do.

    Args:
        loss: ``own + lam * L_TR``; its graph is kept.
        own: The learner's own loss of the same step.
        lam: λ; where it is 0, there is nothing to compare.
        trained: The parameters; those that a loss does not use count as zero.

    Returns:
        ``own_own``, ``own_related`` and ``related_related``, scalars.
    """
    if lam == 0 or not trained:
        return {}
    whole = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    alone = torch.autograd.grad(own, trained, allow_unused=True)
    zero = loss.detach().new_zeros(())
    sums = {"own_own": zero, "own_related": zero, "related_related": zero}
    for all_of_it, a in zip(whole, alone, strict=True):
        if all_of_it is None:
            continue
        a = torch.zeros_like(all_of_it) if a is None else a
        b = all_of_it - a
        for name, product in (
            ("own_own", a * a),
            ("own_related", a * b),
            ("related_related", b * b),
        ):
            sums[name] = sums[name] + product.sum()
    return sums
