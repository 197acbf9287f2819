"""Refusing what several processes cannot do, before they wait for each other."""

from __future__ import annotations

import os
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from trlearner.distributed.agreement import parameters_of
from trlearner.engines.choose import ENGINES
from trlearner.learners.protocol import Learner
from trlearner.regularizer.regularizer import TRLearner
from trlearner.tasks.batch import check_batch


def check_call(learner: Learner, regularizer: TRLearner, batch: Any) -> None:
    """Refuse options, a batch or an engine that this rank can refuse by itself.

    Raises:
        TypeError: The batch is none.
        ValueError: Naming what does not fit.
    """
    check_options(learner, regularizer)
    engine = ENGINES.get(learner.engine)
    if engine is not None and engine.graphs:
        raise ValueError(
            f"engine={learner.engine!r} makes one graph of a whole meta-step, which cannot wait for "
            "other ranks. Use engine='batched', 'loop' or 'auto' with several processes."
        )
    if batch is None:
        raise ValueError(
            "every rank must have at least one task, got batch=None. Use meta-batches of at least as many "
            "tasks as there are ranks, or start fewer processes."
        )
    check_batch(batch)
    if regularizer.monitor is not None:
        regularizer._warn(
            "reg.monitor is not shown the steps of several processes. On one rank, give "
            "it reg(learner, batch) of some tasks now and then."
        )


def check_options(learner: Learner, regularizer: TRLearner) -> None:
    """Refuse parameters without a shape, which each rank would draw anew, and a sampler of one rank's tasks.

    Raises:
        ValueError: Naming them.
    """
    lazy = [n for n, p in parameters_of(learner, regularizer).items() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"parameters {lazy} have no shape yet, but must be the same on all ranks from the start. "
            "Give the widths, e.g. tr.LabelledEncoder(extractor, dim=64, features=40, targets=1) (for "
            "class labels targets=1 will do), or call reg(learner, batch) once before."
        )
    if regularizer.sampler is not None:
        raise ValueError(
            "sampler must be None with several processes, got "
            f"{type(regularizer.sampler).__name__}: TRLearner would tell it of, and let it weigh, this "
            "rank's tasks only. Leave sampler out of TRLearner: let every rank draw its tasks with a "
            "sampler of its own, and call sampler.update(learner, batch) before optimizer.step()."
        )


def check_ddp(ddp: DistributedDataParallel) -> None:
    """Refuse an option with which DDP leaves gradients unsummed.

    Raises:
        ValueError: Naming it.
    """
    if ddp.static_graph:
        raise ValueError(
            "static_graph must be left out, got True: DistributedDataParallel then waits for tensors that it "
            "does not find in an Output. MetaStep needs neither that nor find_unused_parameters: its graph "
            "reaches every parameter in every step."
        )


def check_launch() -> None:
    """Refuse to train alone by mistake.

    Raises:
        ValueError: This is one of several processes, but they are not connected.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size.isdigit() and int(size) > 1:
        raise ValueError(
            f"there is no process group, but WORLD_SIZE={size} says that this is one of {size} processes, "
            "each of which would train alone. Call torch.distributed.init_process_group('gloo') first "
            "('nccl' on GPUs)."
        )
