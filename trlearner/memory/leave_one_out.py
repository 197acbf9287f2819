"""By which tasks the settings of a memory are judged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trlearner.learners.protocol import Learner
from trlearner.memory.known import all_samples, at_most, own_generator, split
from trlearner.memory.remembered import Known, Remembered, check_own
from trlearner.tasks.batch import TaskBatch

MOST = 500
"""So many remembered tasks are enough to judge by."""

QUERIES = 32
"""And so many of each one's queries: tasks differ more than the queries of one."""

Judges = list[tuple[TaskBatch, Tensor | None]]
"""Tasks, and the positions of the models that are their own ``[tasks]``, which must not be asked."""


def judges(
    tasks: Any, own: Any, shots: int | None, remembered: Remembered, learner: Learner | None
) -> Judges:
    """Validation tasks, or without any the remembered tasks.

    Args:
        tasks: Validation tasks, or ``None``.
        own: Their own models, or ``None``.
        shots: As of `leave_one_out`.
        remembered: As of `leave_one_out`.
        learner: The memory's.

    Raises:
        TypeError: The tasks have no queries.
        ValueError: There are own models of no tasks, or as of `check_own` and `leave_one_out`.
    """
    if tasks is None:
        if own is not None:
            raise ValueError("own must be the models of validation tasks; pass these, too.")
        return leave_one_out(remembered, shots)
    if not isinstance(tasks, TaskBatch):
        raise TypeError(
            f"tasks must be a TaskBatch, whose queries tell what helps, got {type(tasks).__name__}."
        )
    check_own(learner, own, len(tasks))
    return [(tasks, None)]


def leave_one_out(remembered: Remembered, shots: int | None) -> Judges:
    """The remembered tasks, at most `MOST` of them, each of which is to be predicted by the others' models.

    Of each task at most `QUERIES` queries are asked for.

    Args:
        remembered: Models and their tasks.
        shots: So many random samples of each task are its support; by default, as it was remembered.

    Raises:
        ValueError: There are no two tasks whose samples are known, or these are not split.
    """
    total = sum(len(known.models) for known in remembered.known)
    if total < 2:
        raise ValueError(
            f"tune() without tasks needs the samples of at least two remembered tasks, got those of {total}. "
            "Pass validation tasks: samples are not saved with a memory, nor known of models without tasks."
        )
    chosen = torch.randperm(total, generator=own_generator())[:MOST].sort().values
    found: Judges = []
    first = 0
    for known in remembered.known:
        here = (chosen >= first) & (chosen < first + len(known.models))
        places = chosen[here] - first
        first += len(known.models)
        if len(places):
            itself = remembered.positions(known)[places]
            batch = _split(known, places, shots)
            found.append((TaskBatch(batch.support, at_most(batch.query, QUERIES)), itself))
    return found


def _split(known: Known, places: Tensor, shots: int | None) -> TaskBatch:
    tasks = known.tasks
    if shots is None:
        if not isinstance(tasks, TaskBatch):
            raise ValueError(
                "shots must say how many samples of a remembered task are its support, because tasks were "
                "remembered without support and queries, got None."
            )
        return tasks[places.to(tasks.support.x.device)]
    samples = all_samples(tasks)
    some = samples[places.to(samples.x.device)]
    counts = some.is_real().sum(1) - 1
    if bool((counts < 1).any()):
        raise ValueError(
            "every remembered task needs at least two samples, one for its support and one to judge by. Pass "
            "validation tasks."
        )
    support, query = split(some, counts.clamp(max=shots))
    return TaskBatch(support, query)
