"""What goes together in a regularized meta-step: options, learner and batch."""

from __future__ import annotations

from typing import Any

from trlearner.batch import TaskBatch
from trlearner.consistency import mixture_kind
from trlearner.encoders.extractor import extractor_of
from trlearner.engines import compiled
from trlearner.head import check_learner
from trlearner.learners.protocol import Learner
from trlearner.meta_step import Settings


def check_call(
    settings: Settings, learner: Any, batch: Any, related: bool, tasks: int | None = None
) -> list[str]:
    """Refuse what is no learner or no batch, or does not go with the options.

    Args:
        settings: The options.
        learner: What was given for it.
        batch: What was given for it.
        related: Whether there is to be a relation term.
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
    extractor = extractor_of(settings.encoder)
    if extractor is not None and extractor.own:
        extractor.shared(learner)  # refuses a part of the learner
    if not related:
        return []
    mixture_kind(settings.mixture, batch.query.y, settings.normalize)
    if settings.head is not None:
        check_learner(learner, settings.head, batch.support, settings.loss_fn)
    if settings.align == "hungarian" and learner.engine in compiled.NAMES:
        raise ValueError(
            f"align='hungarian' cannot be part of a graph, which engine={learner.engine!r} needs. "
            "Use align='sinkhorn' or engine='batched'."
        )
    if settings.align != "none" and batch.ways is None:
        raise ValueError(
            f"align={settings.align!r} needs the number of classes: build TaskBatch(..., ways=5)."
        )
    tasks = len(batch) if tasks is None else tasks
    if tasks == 1:
        return ["a batch of one task has no neighbours: its relation loss is 0."]
    if tasks == 2:
        return [
            "in a batch of two tasks each is the other's only neighbour: all weights are 1 and "
            "the relations learn nothing. Use three tasks or more."
        ]
    return []
