"""`MetaStep`: a regularized meta-step whose tasks lie on several ranks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trlearner.base.checks import check_flag, check_instance
from trlearner.distributed.check import check_ddp, check_launch, check_options
from trlearner.distributed.gradients import summed_by_ddp
from trlearner.distributed.rank_step import make_plan, rank_step
from trlearner.distributed.ranks import Ranks, connected
from trlearner.learners.protocol import Learner, check_learner
from trlearner.regularizer.output import Output
from trlearner.regularizer.regularizer import TRLearner
from trlearner.tasks.batch import TaskBatch


class MetaStep(nn.Module):
    """``MetaStep(learner, reg)(batch)`` is ``reg(learner, batch)`` with the tasks of all ranks.

    Every rank adapts to the tasks of its own batch; M, the mixtures and the loss span all of them, and
    a run on several ranks equals a run on one with the ranks' batches one after the other. Ranks may
    have different numbers of tasks, but each has at least one.

    It is the module that `DistributedDataParallel` wraps, which sums its gradients; call ``ddp(batch)``.
    Without it, call `sync_gradients` between ``backward()`` and the optimizer's step. Without a process
    group it is the plain step.

    On several ranks, engines ``"auto"`` and ``"tune"`` never compile, and layers that draw at random
    draw on each rank from that rank's own random state. Queries are chosen as rank 0's generator says.

    Args:
        learner: Adapts; the same on all ranks.
        regularizer: Relates; the same on all ranks.
        group: The processes that share a meta-batch; by default all.
        reduction: How gradients will be brought together: ``"mean"`` as DDP does, so that they are scaled
            by the number of ranks, ``"sum"``, or ``"auto"``: the mean inside of DDP, else the sum.
        check: Compare the bits of all parameters at every step, not only at the first, so that ranks that
            went apart are found. It may be set at any time, on all ranks.

    Returns:
        An `Output` whose `loss` has the value of the whole meta-batch on every rank, and the
        gradient of this rank's share; `relations`, `weights` and `embeddings` are of all tasks,
        `predictions` of this rank's. ``loss.backward()`` must be called on all ranks or on none.

    Example:
        >>> import trlearner as tr
        >>> learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=2)
        >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8, features=1, targets=1))
        >>> step, x = tr.MetaStep(learner, reg), torch.rand(4, 10, 1)
        >>> step(tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x))).relations.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        learner: Learner,
        regularizer: TRLearner,
        group: dist.ProcessGroup | None = None,
        reduction: Literal["auto", "mean", "sum"] = "auto",
        check: bool = False,
    ) -> None:
        super().__init__()
        first = "MetaStep takes the learner first: tr.MetaStep(learner, reg)."
        check_instance("regularizer", regularizer, TRLearner, first)
        check_learner(learner)
        check_flag("check", check)
        if reduction not in ("auto", "mean", "sum"):
            raise ValueError(f"reduction must be 'auto', 'mean' or 'sum', got {reduction!r}.")
        self.learner = learner
        self.regularizer = regularizer
        self.group = group
        self.reduction = reduction
        self.check = check
        self._steps = 0
        if connected():
            check_options(learner, regularizer)

    def forward(self, batch: TaskBatch) -> Output:
        """One meta-step; every rank must call it.

        Args:
            batch: This rank's tasks.

        Raises:
            TypeError: The batch is none.
            ValueError: Naming what does not fit, or differs between ranks.
            LostRank: Another rank has failed or is gone.
        """
        learner, reg = self.learner, self.regularizer
        if not connected():
            check_launch()
            plain: Output = reg(learner, batch)
            return plain
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(batch.replace(batch.support.clone(), batch.query.clone()))
        ranks = Ranks.of(self.group)
        ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if ddp is not None:
            check_ddp(ddp)
        mean = self.reduction == "mean" or (self.reduction == "auto" and ddp is not None)
        plan = make_plan(ranks, learner, reg, batch, self._steps, self.check)
        self._steps += 1
        if torch.is_grad_enabled():
            (summed_by_ddp.discard if ddp is None else summed_by_ddp.add)(learner)
        return rank_step(learner, reg, plan, ddp is not None, ranks.size if mean else 1)
