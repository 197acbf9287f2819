"""What ranks must agree on before they compute together."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trlearner.distributed.collectives import gather_rows, tell
from trlearner.distributed.lost_rank import LostRank
from trlearner.distributed.ranks import Ranks

PLAIN = (bool, int, float, str, type(None), enum.Enum)
SKIPPED = ("lam", "temperature", "monitor")
"""Of the regularizer: compared at every step by themselves, or free to differ."""
REGULARIZER = "regularizer."

T = TypeVar("T")


def every_rank(
    ranks: Ranks, width: int, compute: Callable[[], tuple[T, Sequence[int]]]
) -> tuple[T, list[list[int]]]:
    """What this rank computes by itself, and every rank's whole numbers; an error of one is one of all.

    Args:
        ranks: Who takes part.
        width: How many numbers there are.
        compute: Returns a value, and numbers that other ranks must know.

    Raises:
        LostRank: Another rank has failed.
        Exception: Of `compute`.
    """
    numbers, error = [1, *[0] * width], None
    try:
        value, own = compute()
        numbers = [0, *own]
    except Exception as raised:  # told to the others, so that they do not wait
        error = raised
    row = torch.tensor([numbers], dtype=torch.int64, device=ranks.device)
    rows = gather_rows(ranks, row, "headers").tolist()
    if error is not None:
        raise error
    if failed := ", ".join(str(rank) for rank, row in enumerate(rows) if row[0]):
        raise LostRank(
            f"rank {ranks.rank} of {ranks.size}: rank {failed} raised an error in this step, so no rank can "
            "finish it. See that rank's own error, and start all ranks again from the last checkpoint."
        )
    return value, [row[1:] for row in rows]


def fingerprint(value: Any) -> int:
    """A number that is the same for equal texts in all processes."""
    return zlib.crc32(value if isinstance(value, bytes) else repr(value).encode())


SETTINGS = (
    "learner and regularizer must be set alike on all ranks, but these differ:\n{lines}\nBuild both from the "
    "same configuration on every rank, and let every rank take the same steps; only the tasks may differ."
)
PARAMETERS = (
    "parameters must be the same on all ranks, but {count} differ, first {name!r}. At the start: wrap "
    "MetaStep in DistributedDataParallel, or call trlearner.distributed.broadcast(learner, reg). Later on, "
    "gradients were not summed: call ddp(batch), never ddp.module(batch); without DDP, call "
    "trlearner.distributed.sync_gradients(learner, reg) before every optimizer.step()."
)
TENSORS = (
    "{name} must be alike on all ranks, got {values}. Samples of all ranks' tasks need one shape and type; "
    "only the numbers of tasks, support samples and queries may differ."
)


def check_same(ranks: Ranks, prints: Sequence[int], own: Mapping[str, str], error: str) -> None:
    """Refuse to go on with ranks that would compute different things.

    Args:
        ranks: Who compares.
        prints: Every rank's fingerprint of what it has.
        own: What this rank has, in words by name.
        error: One of the texts above.

    Raises:
        ValueError: Naming what differs.
    """
    if len(set(prints)) == 1:
        return
    told: list[dict[str, str]] = tell(ranks, dict(own))
    said = {n: [one.get(n, "none") for one in told] for one in told for n in one}
    apart = {
        n: ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
        for n, values in said.items()
        if len(set(values)) > 1
    }
    name, values = next(iter(apart.items()))
    lines = "\n".join(f"  {n}: {v}" for n, v in apart.items())
    count = f"{len(apart)} of {len(own)}"
    raise ValueError(error.format(name=name, values=values, lines=lines, count=count))


def settings_of(learner: nn.Module, regularizer: nn.Module, steps: int) -> dict[str, str]:
    """What must be alike on all ranks, in words: a little at every step, all of it at the first.

    Args:
        learner: Adapts.
        regularizer: A `TRLearner`.
        steps: How many meta-steps were taken before.
    """
    values = {name: getattr(regularizer, name) for name in ("lam", "temperature")}
    values |= {**vars(regularizer.options), "gradients enabled": torch.is_grad_enabled()}
    values |= {"meta-steps so far": steps}
    parts = {"learner": learner, "regularizer": regularizer}
    values |= {f"{name}.training": part.training for name, part in parts.items()}
    if steps:
        return {name: _in_words(value) for name, value in values.items()}
    shapes = {}
    for name, module in parts.items():
        for path, part in module.named_modules(prefix=name):
            values[path] = type(part)
            plain = {n: v for n, v in vars(part).items() if isinstance(v, PLAIN) or callable(v)}
            values |= {
                f"{path}.{n}": v for n, v in plain.items() if n[0] != "_" and n not in SKIPPED
            }
        for path, p in module.named_parameters(prefix=name):
            shapes[path] = f"{list(p.shape)} of {p.dtype}"
    return {name: _in_words(value) for name, value in values.items()} | shapes


def parameters_of(learner: nn.Module, regularizer: nn.Module) -> dict[str, Tensor]:
    """All parameters, by their own names; those of the regularizer with `REGULARIZER` in front."""
    found: dict[str, Tensor] = dict(learner.named_parameters())
    return found | {REGULARIZER + n: p for n, p in regularizer.named_parameters()}


def digests_of(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """A number for each parameter, which is another as soon as one of its bits is."""
    flat = {n: p.detach().cpu().reshape(-1).view(torch.uint8) for n, p in parameters.items()}
    return {name: str(fingerprint(bits.numpy().tobytes())) for name, bits in flat.items()}


def _in_words(value: Any) -> str:
    """The same in all processes, unlike the address of a function."""
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return repr(value)
