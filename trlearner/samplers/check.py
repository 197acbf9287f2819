"""Which tasks a sampler can draw batches from, and which not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from trlearner.base.checks import check_whole, shown


def check_tasks(task_ids: Sequence[Hashable] | None, batch_size: int | None) -> None:
    """Refuse a set of tasks that no batch can be drawn from.

    Raises:
        ValueError: Naming what does not fit.
    """
    check_whole("batch_size", batch_size, optional=task_ids is None)
    if task_ids is None:
        return
    try:
        distinct = len(set(task_ids))
    except TypeError:
        raise TypeError(
            f"task_ids must be a sequence of hashable names, got {shown(task_ids)}."
        ) from None
    if distinct < len(task_ids):
        twice = next(name for i, name in enumerate(task_ids) if name in task_ids[:i])
        raise ValueError(f"task_ids must be distinct, got {twice!r} twice.")
    check_batch_size(batch_size, len(task_ids), "task_ids")


def check_batch_size(batch_size: int | None, tasks: int, what: str) -> int:
    """Refuse fewer tasks than a batch holds.

    Raises:
        ValueError: Naming both.
    """
    if batch_size is None:
        raise ValueError(
            "reweight keeps batch_size of the candidates, got batch_size=None. Pass batch_size to the "
            "sampler, or use weigh(learner, batch)."
        )
    if tasks < batch_size:
        raise ValueError(
            f"{what} must be at least batch_size={batch_size} tasks, for a batch holds no task twice, "
            f"got {tasks}."
        )
    return batch_size
