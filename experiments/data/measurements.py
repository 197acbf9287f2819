"""Tables of measured activities: read, checked, and made into fingerprints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from trlearner.experiments.data.assays import Table
from trlearner.experiments.data.fingerprints import check_smiles, fingerprints
from trlearner.experiments.data.listing import rows


class Measurement(NamedTuple):
    """One compound in one assay.

    Attributes:
        assay: Its name.
        smiles: The compound.
        value: Its activity, e.g. pKi or pIC50.
        split: The split that its assay belongs to, if the data says so.
        support: Whether the data's own division has it in the support set, if there is one.
    """

    assay: str
    smiles: str
    value: float
    split: str | None = None
    support: bool | None = None


def read_csv(path: Path, columns: Mapping[str, str], assay: str | None = None) -> list[Measurement]:
    """The measurements in a file with a header.

    Args:
        path: The file.
        columns: What the file calls ``smiles``, ``value`` and, where it has them, ``task``, ``split``
            and ``part`` (``train`` is support, ``test`` is query).
        assay: The name of the one assay in the file, if it has no such column.

    Raises:
        ValueError: Where the file is not as it should be, by line.
    """
    needed = {columns[name] for name in ("task", "smiles", "value", "part") if name in columns}
    found = []
    for number, row in rows(path, needed):
        try:
            found.append(_measurement(row, columns, assay))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not found:
        raise ValueError(f"{path} has a header but no rows.")
    return found


def _measurement(
    row: Mapping[str, str], columns: Mapping[str, str], assay: str | None
) -> Measurement:
    # A cell that is empty or that a short row lacks is None.
    cells = {name: (row.get(column) or "").strip() or None for name, column in columns.items()}
    name, smiles = assay or cells.get("task"), cells["smiles"]
    value, part = cells["value"], cells.get("part")
    if name is None or smiles is None:
        raise ValueError(f"task and smiles must not be empty, got {dict(row)}.")
    check_smiles(smiles)
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{columns['value']} must be a finite number, got {value!r}.")
    if part not in (None, "train", "test"):
        raise ValueError(f"{columns['part']} must be train or test, got {part!r}.")
    return Measurement(
        name, smiles, number, cells.get("split"), None if part is None else part == "train"
    )


def tabulate(found: Sequence[Measurement], radius: int = 2, bits: int = 1024) -> Table:
    """The measurements with fingerprints, assays in the order in which they first appear.

    A compound measured several times in an assay becomes one, with the mean of its values, so that
    it can't be support and query at once; where the data divides support and query itself, it
    stays where it first stood. Compounds that RDKit can't read are left out, with a warning.

    Raises:
        ValueError: An assay has no compound that RDKit can read.
    """
    prints = fingerprints([one.smiles for one in found], radius, bits)
    names = list(dict.fromkeys(one.assay for one in found))
    number = {name: i for i, name in enumerate(names)}
    assay = np.array([number[one.assay] for one in found])
    readable = prints.compound >= 0
    _report([found[i] for i in prints.unreadable()], len(found))
    _refuse_empty({names[i] for i in np.unique(assay[readable])}, names)
    value = np.array([one.value for one in found])[readable]
    assay, compound = assay[readable], prints.compound[readable]
    late = np.array([one.support is False for one in found])[readable]
    _, first, same = np.unique(
        assay * len(prints.packed) + compound, return_index=True, return_inverse=True
    )
    # Support candidates first, as `Table` has them.
    order = np.lexsort((late[first], assay[first]))
    first, mean = first[order], (np.bincount(same, value) / np.bincount(same))[order]
    divided = any(one.support is not None for one in found)
    supports = np.bincount(assay[first][~late[first]], minlength=len(names))
    return Table(
        bits=torch.from_numpy(prints.packed),
        compound=torch.from_numpy(compound[first]),
        value=torch.from_numpy(mean).float(),
        size=torch.from_numpy(np.bincount(assay[first])),
        names=tuple(names),
        supports=torch.from_numpy(supports) if divided else None,
    )


def _report(unreadable: Sequence[Measurement], rows: int) -> None:
    if unreadable:
        first = ", ".join(f"{one.smiles!r} in {one.assay}" for one in unreadable[:5])
        warnings.warn(
            f"RDKit can't read the SMILES of {len(unreadable)} of {rows} measurements, which are left "
            f"out; the first: {first}.",
            stacklevel=3,
        )


def _refuse_empty(readable: Collection[str], names: Sequence[str]) -> None:
    empty = [name for name in names if name not in readable]
    if empty:
        raise ValueError(
            f"RDKit can't read a single compound of {len(empty)} assays, the first {empty[:5]}. Is the "
            "SMILES column the right one? If so, leave these assays out."
        )
