"""What goes together in a regularized meta-step: options, learner and batch."""

from __future__ import annotations

from typing import Any

from trlearner.encoders.protocol import Encoder, HasPrototypes
from trlearner.engines.choose import ENGINES
from trlearner.engines.head import check_learner
from trlearner.learners.extractor import extractor_of
from trlearner.learners.protocol import Learner
from trlearner.regularizer.meta_step import Parts
from trlearner.regularizer.options import Align
from trlearner.relations.consistency import mixture_kind
from trlearner.tasks.batch import TaskBatch


def check_call(parts: Parts, learner: Any, batch: Any, tasks: int | None = None) -> list[str]:
    """Refuse what is no learner or no batch, or does not go with the options.

    Args:
        parts: Of the regularizer.
        learner: What was given for it.
        batch: What was given for it.
        tasks: How many there are in all, where the batch is one rank's share.

    Returns:
        What to warn of.

    Raises:
        TypeError: Naming what is of a wrong kind.
        ValueError: Naming what does not fit.
    """
    if not isinstance(learner, Learner):
        raise TypeError(
            f"learner must be a trlearner Learner such as tr.MAML(model), got "
            f"{type(learner).__name__}. reg(learner, batch) takes the learner first."
        )
    if not isinstance(batch, TaskBatch):
        raise TypeError(
            f"batch must be a TaskBatch, got {type(batch).__name__}. Build one with "
            "tr.TaskBatch(support=(xs, ys), query=(xq, yq))."
        )
    options = parts.options
    extractor = extractor_of(parts.encoder)
    concerns = [] if extractor is None else extractor.concerns(learner)
    if parts.lam == 0:
        return []
    mixture_kind(options.mixture, batch.query.labelled, options.normalize)
    if options.head is not None:
        check_learner(learner, options.head, batch.support, parts.loss_fn)
    engine = ENGINES.get(learner.engine)
    if options.align == "hungarian" and engine is not None and engine.graphs:
        raise ValueError(
            f"align='hungarian' cannot be part of a graph, which engine={learner.engine!r} needs. "
            "Use align='sinkhorn' or engine='batched'."
        )
    if options.align != "none" and batch.ways is None:
        raise ValueError(
            f"align={options.align!r} needs the number of classes: build TaskBatch(..., ways=5)."
        )
    tasks = len(batch) if tasks is None else tasks
    if tasks == 1:
        concerns.append("a batch of one task has no neighbours: its relation loss is 0.")
    if tasks == 2:
        concerns.append(
            "in a batch of two tasks each is the other's only neighbour: all weights are 1 and "
            "the relations learn nothing. Use three tasks or more."
        )
    return concerns


def check_align(align: Align, encoder: Encoder) -> None:
    """Refuse to align classes by prototypes that an encoder does not have.

    Raises:
        ValueError: Naming the encoder, and others.
    """
    if align != "none" and not isinstance(encoder, HasPrototypes):
        raise ValueError(
            f"align={align!r} compares class prototypes, which {type(encoder).__name__} "
            "does not have. Use InputEncoder or LabelledEncoder, or align='none'."
        )
