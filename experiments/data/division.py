"""Which assays are for training, and which for validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from trlearner.experiments.data.measurements import Measurement

SHARES = {"validation": 0.15, "test": 0.2}
"""Of the groups; the others are for training."""


def split_groups(group: Mapping[str, str], seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Assays by split, those of one group together; the same ones for the same names and seed.

    Args:
        group: Of each assay, e.g. its target.
        seed: Another seed makes another division.
    """

    def place(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    groups = sorted(set(group.values()), key=place)
    if len(groups) < 3:
        raise ValueError(
            "at least 3 groups of assays are needed for train, validation and test, got "
            f"{sorted(groups)}. Name the split of each task in a column of its own."
        )
    counts = {split: max(1, round(share * len(groups))) for split, share in SHARES.items()}
    a, b = counts["validation"], counts["validation"] + counts["test"]
    parts = {"train": groups[b:], "validation": groups[:a], "test": groups[a:b]}
    return {
        split: tuple(name for name in group if group[name] in set(members))
        for split, members in parts.items()
    }


def split_column(found: Iterable[Measurement]) -> dict[str, tuple[str, ...]] | None:
    """Assays by split as the data says, or ``None`` where it says nothing."""
    split: dict[str, str | None] = {}
    for one in found:
        if split.setdefault(one.assay, one.split) != one.split:
            raise ValueError(
                f"all rows of a task must name one split, but task {one.assay} has both "
                f"{split[one.assay]!r} and {one.split!r}."
            )
    if set(split.values()) == {None}:
        return None
    strange = sorted({str(s) for s in split.values()} - {"train", "validation", "test", "shifted"})
    if strange:
        raise ValueError(f"split must be train, validation, test or shifted, got {strange}.")
    return {s: tuple(n for n in split if split[n] == s) for s in dict.fromkeys(split.values()) if s}
