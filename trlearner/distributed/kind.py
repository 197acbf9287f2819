"""What tensors look like on every rank, so that ranks without tasks know it as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from trlearner.distributed.agreement import check_none_failed
from trlearner.distributed.collective import Ranks, gather_rows

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
AXES = 8
WIDTH = AXES + 4

T = TypeVar("T")


class Kind(NamedTuple):
    """What one row of a tensor is, on every rank; a row is what belongs to one task."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    graded: bool  # whether its gradient is wanted on some rank

    def in_words(self) -> str:
        """For errors."""
        return f"{list(self.shape)} of {self.dtype}"


def kind_of(tensor: Tensor | None) -> Kind | None:
    """Of a tensor ``[tasks, ...]``.

    Raises:
        ValueError: It cannot be told to other ranks.
    """
    if tensor is None:
        return None
    if tensor.ndim > AXES + 1 or tensor.dtype not in DTYPES:
        raise ValueError(
            f"tensors on several ranks may have {AXES + 1} axes and real numbers, got "
            f"{list(tensor.shape)} of {tensor.dtype}."
        )
    return Kind(tuple(tensor.shape[1:]), tensor.dtype, tensor.requires_grad)


def agree_on_kinds(
    ranks: Ranks,
    counts: Sequence[int],
    failed: bool,
    kinds: Mapping[str, Kind | None],
    facts: Mapping[str, int],
) -> tuple[dict[str, Kind | None], dict[str, int]]:
    """What tensors look like on all ranks that have tasks; all ranks pass the same names.

    Args:
        ranks: Who agrees.
        counts: How many tasks each rank has.
        failed: Whether this rank has; it is told nothing, for it has an error of its own to raise.
        kinds: Of this rank's tensors; ``None`` for one that there is not.
        facts: Numbers that these ranks must have in common.

    Raises:
        LostRank: Another rank has failed.
        ValueError: Naming what differs.
    """
    own = [int(failed), *facts.values(), *(n for kind in kinds.values() for n in _encoded(kind))]
    row = torch.tensor([own], dtype=torch.int64, device=ranks.device)
    rows = gather_rows(ranks, row, [1] * ranks.size, "headers").tolist()
    if failed:
        return {}, {}
    check_none_failed(ranks, [one[0] for one in rows])
    told = {rank: iter(rows[rank][1:]) for rank, count in enumerate(counts) if count}
    common = {name: _common(name, {r: next(one) for r, one in told.items()}) for name in facts}
    found: dict[str, Kind | None] = {}
    for name in kinds:
        ours = {r: _decoded(list(islice(one, WIDTH))) for r, one in told.items()}
        _common(name, {r: "none" if k is None else k.in_words() for r, k in ours.items()})
        first, *others = ours.values()
        graded = any(k is not None and k.graded for k in (first, *others))
        found[name] = None if first is None else first._replace(graded=graded)
    return found, common


def _common(name: str, told: Mapping[int, T]) -> T:
    """What all ranks say."""
    if len(set(told.values())) > 1:
        said = ", ".join(f"{value} on rank {rank}" for rank, value in told.items())
        raise ValueError(
            f"{name} must be alike on all ranks, got {said}. Samples of all ranks' tasks need one shape "
            "and type; only the numbers of tasks, support samples and queries may differ."
        )
    return next(iter(told.values()))


def _encoded(kind: Kind | None) -> list[int]:
    if kind is None:
        return [0] * WIDTH
    padded = [*kind.shape, *[0] * (AXES - len(kind.shape))]
    return [1, DTYPES.index(kind.dtype), int(kind.graded), len(kind.shape), *padded]


def _decoded(row: Sequence[int]) -> Kind | None:
    there, dtype, graded, axes, *shape = row
    return Kind(tuple(shape[:axes]), DTYPES[dtype], bool(graded)) if there else None
