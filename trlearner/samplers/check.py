"""What a task sampler can be told, and what not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from trlearner.base.checks import check_number, check_whole, shown


def check_settings(warmup: int, floor: float, batches: int | None) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: Naming the argument, what it was and what it may be.
    """
    check_whole("warmup", warmup, least=0)
    if isinstance(floor, bool) or not (isinstance(floor, (int, float)) and 0 < floor <= 1):
        raise ValueError(
            f"floor must be a share in (0, 1], got {floor!r}. It keeps every task within reach; 1 is "
            "uniform."
        )
    check_whole("batches", batches, optional=True)


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
    check_batch(batch_size, len(task_ids), "task_ids")


def check_batch(batch_size: int | None, tasks: int, what: str = "candidates") -> int:
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


def check_ranges(every: int, share: float | None, decay: float, lr: float) -> None:
    """Refuse settings of `AdaptiveTaskSampler` that make no sense.

    Raises:
        ValueError: Naming the argument, what it was and what it may be.
    """
    check_whole("every", every)
    number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if share is not None and not (number and 0 < share <= 1):
        raise ValueError(f"share must be a share in (0, 1], or None, got {share!r}.")
    for name, value in (("decay", decay), ("lr", lr)):
        check_number(name, value, above=0)


def check_kind(kind: str, kinds: Sequence[str]) -> None:
    """Refuse a way to look ahead that there is not.

    Raises:
        ValueError: Naming those that there are.
    """
    if kind not in kinds:
        raise ValueError(f"engine must be one of {tuple(kinds)}, got {kind!r}.")
