"""Errors for when another rank is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch.distributed as dist

SIGNS = ("gloo", "nccl", "process group", "processgroup", "collective", "connection", "timed out")
"""Words of backends about a collective that failed."""


class LostRank(RuntimeError):
    """A collective failed: another rank has ended or is stuck, and this one cannot go on."""


@contextmanager
def explained(what: str, signs: Sequence[str] = ("",)) -> Iterator[None]:
    """Says of an error inside what it means for the job.

    Args:
        what: Failed.
        signs: Words of which an error has one; others pass.

    Raises:
        LostRank: In place of a `RuntimeError`.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LostRank) or not any(sign in str(error).lower() for sign in signs):
            raise
        raise _lost(what, error) from error


def guarded() -> AbstractContextManager[None]:
    """Around a training loop: a rank that is lost is explained wherever it shows, in DDP's own part too.

    Raises:
        LostRank: In place of a backend's error; other errors pass.

    Example:
        >>> with guarded():
        ...     pass
    """
    return explained("a collective", SIGNS)


def _lost(what: str, error: RuntimeError) -> LostRank:
    who = ""
    if dist.is_initialized():
        who = f"rank {dist.get_rank()} of {dist.get_world_size()}: "
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return LostRank(
        f"{who}{what} failed, so another rank has ended or is stuck: it was killed, ran out of memory, "
        "raised an error of its own, or takes another number of steps. This rank cannot go on without "
        "it. Look for the first error in the other ranks' output, let all ranks end, and start all of "
        f"them again from the last checkpoint. Backend: {said}"
    )
