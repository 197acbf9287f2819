"""Tasks from assays: some compounds with known activity, others to be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from trlearner.experiments.data.problem import Request, Split

import trlearner as tr


@dataclass(frozen=True, eq=False)
class Table:
    """Many assays of unequal size; the rows of one assay follow each other.

    Attributes:
        bits: The compounds' fingerprints, ``[compounds, bytes]`` of uint8, first bit highest.
        compound: Which compound each row is about, ``[rows]``.
        value: Its activity in that assay, ``[rows]``.
        size: How many rows each assay has, ``[assays]``.
        names: Of the assays.
        supports: How many rows of each assay, the first ones, may be support samples, where the data
            says so; the others are its queries. ``None`` where any row may be either.
    """

    bits: Tensor
    compound: Tensor
    value: Tensor
    size: Tensor
    names: tuple[str, ...]
    supports: Tensor | None = None

    def rows(self, assays: Tensor) -> Tensor:
        """True for the rows of some assays: ``[rows]``."""
        chosen = torch.zeros(len(self.names), dtype=torch.bool).index_fill(0, assays, True)
        return chosen.repeat_interleave(self.size)

    def keep(self, rows: Tensor) -> Table:
        """Only the rows where ``rows [rows]`` is true."""
        assay = torch.arange(len(self.names)).repeat_interleave(self.size)
        size = torch.bincount(assay[rows], minlength=len(self.names))
        supports = self.supports
        if supports is not None:
            place = torch.arange(len(rows)) - self.starts()[assay]
            early = rows & (place < supports[assay])
            supports = torch.bincount(assay[early], minlength=len(self.names))
        return Table(self.bits, self.compound[rows], self.value[rows], size, self.names, supports)

    def starts(self) -> Tensor:
        """The first row of each assay."""
        return self.size.cumsum(0) - self.size


@dataclass(frozen=True, eq=False)
class _Part:
    """A split: its assays, and what is the same for all of its batches."""

    assays: Tensor
    longest: int
    shots: int
    queries: int
    full: tuple[bool, bool]
    """Whether every assay fills the support set, and the query set; else these have a mask."""


class Assays:
    """A source of tasks from a table of assays.

    A task is one assay: K compounds drawn from it are the support, Q others the queries. All batches
    of a split have the same shape. Where an assay has too few compounds, its query set is masked; its
    support set only where the data itself divides support and query. Targets are standardized by
    the mean and standard deviation of all training assays' values, `mean` and `std`.

    Args:
        table: All assays.
        splits: The names of each split's assays.
        request: Shots and queries; how many training assays, and compounds of each.
        test_queries: Query compounds of a task outside of training; ``None`` for all that there are.

    Raises:
        ValueError: An assay is too small, or there are fewer assays than asked for.
    """

    def __init__(
        self,
        table: Table,
        splits: Mapping[str, Sequence[str]],
        request: Request,
        test_queries: int | None = None,
    ) -> None:
        number = {name: i for i, name in enumerate(table.names)}
        assays = {s: torch.tensor([number[n] for n in names]) for s, names in splits.items()}
        assays["train"] = _first(assays["train"], request.train_tasks)
        if request.pool is not None:
            table = _pool(table, assays["train"], request.pool)
        values = table.value[table.rows(assays["train"])].double()
        self.mean, self.std = float(values.mean()), float(values.std())
        if not self.std > 0:
            raise ValueError(f"all training values are {self.mean}; there is nothing to predict.")
        longest = int(table.size.max())
        queries = dict.fromkeys(assays, longest if test_queries is None else test_queries)
        queries["train"] = request.queries
        self.splits = {s: _part(table, assays[s], request.shots, queries[s]) for s in assays}
        self._device = torch.device(request.device)
        self._names = table.names
        self._bits, self._compound = table.bits.to(self._device), table.compound.to(self._device)
        self._value = ((table.value - self.mean) / self.std).to(self._device)
        self._starts, self._size = table.starts().to(self._device), table.size.to(self._device)
        self._supports = None if table.supports is None else table.supports.to(self._device)
        shifts = torch.arange(7, -1, -1)
        self._unpacked = (torch.arange(256)[:, None] >> shifts & 1).float().to(self._device)

    def sample(self, split: Split, n_tasks: int, generator: torch.Generator) -> tr.TaskBatch:
        """Tasks of a split; `ids` are the names of their assays.

        A training batch has no assay twice. Elsewhere, none comes again before all have come, and
        then with other compounds.
        """
        if split not in self.splits:
            raise ValueError(f"split must be one of {sorted(self.splits)}, got {split!r}.")
        part = self.splits[split]
        count = len(part.assays)
        if split == "train" and n_tasks > count:
            raise ValueError(f"n_tasks must be at most the {count} training assays, got {n_tasks}.")
        rounds = -(-n_tasks // count)
        turn = torch.rand(rounds, count, generator=generator, device=generator.device).argsort(1)
        chosen = part.assays[turn.flatten()[:n_tasks].cpu()]
        names = tuple(self._names[i] for i in chosen.tolist())
        return self._draw(part, chosen.to(self._device), names, generator)

    @property
    def names(self) -> list[str]:
        """Of the training assays."""
        return [self._names[i] for i in self.splits["train"].assays.tolist()]

    def pick(self, names: Sequence[str], generator: torch.Generator) -> tr.TaskBatch:
        """These training assays."""
        number = {name: i for i, name in enumerate(self._names)}
        chosen = torch.tensor([number[name] for name in names], device=self._device)
        return self._draw(self.splits["train"], chosen, tuple(names), generator)

    def _draw(
        self, part: _Part, chosen: Tensor, names: tuple[str, ...], generator: torch.Generator
    ) -> tr.TaskBatch:
        size = self._size[chosen, None]
        keys = torch.rand(
            len(chosen), part.longest, generator=generator, device=generator.device
        ).to(self._device)
        place = torch.arange(part.longest, device=self._device)
        begin = torch.full_like(size, part.shots)
        if self._supports is not None:
            begin = self._supports[chosen, None]
            keys = keys + 2 * (place >= begin)
        # Each assay's compounds in random order: its support candidates, its others, then nothing.
        order = keys.masked_fill(place >= size, torch.inf).argsort(1)
        support, query = place[: part.shots], begin + place[: part.queries]
        real = (support < begin, query < size)
        rows = self._starts[chosen, None] + order
        masks = [None if full else mask for full, mask in zip(part.full, real, strict=True)]
        return tr.TaskBatch(
            support=self._samples(rows[:, : part.shots], masks[0]),
            query=self._samples(rows.gather(1, query.clamp(max=part.longest - 1)), masks[1]),
            ids=names,
        )

    def _samples(self, rows: Tensor, mask: Tensor | None) -> tr.Samples:
        if mask is not None:
            rows = rows.where(mask, rows[:, :1])
        packed = self._bits[self._compound[rows]]
        return tr.Samples(
            self._unpacked[packed.long()].flatten(2), self._value[rows][..., None], mask
        )


def _first(assays: Tensor, count: int | None) -> Tensor:
    if count is None:
        return assays
    if not 1 <= count <= len(assays):
        raise ValueError(f"train_tasks must lie in 1..{len(assays)} (all of them), got {count}.")
    return assays[torch.randperm(len(assays), generator=torch.Generator().manual_seed(0))[:count]]


def _pool(table: Table, assays: Tensor, pool: int) -> Table:
    """The table with at most so many compounds of each of some assays, always the same ones."""
    rows = len(table.value)
    assay = torch.arange(len(table.names)).repeat_interleave(table.size)
    keys = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = (assay + keys).argsort()
    rank = torch.empty(rows, dtype=torch.long)
    rank[order] = torch.arange(rows) - table.starts()[assay]
    return table.keep(~table.rows(assays) | (rank < pool))


def _part(table: Table, assays: Tensor, shots: int, queries: int) -> _Part:
    size = table.size[assays]
    supports = torch.full_like(size, shots) if table.supports is None else table.supports[assays]
    left = size - supports
    small = [table.names[i] for i in assays[(supports < 1) | (left < 1)].tolist()]
    if small:
        raise ValueError(
            f"every assay must have {shots if table.supports is None else 'some'} support compounds and "
            f"at least one query compound, but {len(small)} have not, the first {small[:5]}. Ask for "
            "fewer shots (or a larger pool), or leave these assays out."
        )
    most = min(queries, int(left.max()))
    k = min(shots, int(supports.max()))
    full = (bool((supports >= k).all()), bool((left >= most).all()))
    return _Part(assays, int(size.max()), k, most, full)
