"""The 4,276 ChEMBL assays of pQSAR 2.0, in the files and the splits that meta-learning papers use.

Martin et al., J. Chem. Inf. Model. 59, 4450 (2019), doi 10.1021/acs.jcim.9b00375. The files
were not at hand when this was written; it follows the readers of MetaMix (github.com/huaxiuyao/MetaMix,
Drug/preprocess.py and Drug/data.py), which take them to be text copied out of a PDF:

- ``ci9b00375_si_002.txt``, activities: five fields with blanks between them, ``compound assay pIC50
  prediction TRN|TST``; a minus may be U+2010, U+2212 or a byte that is no UTF-8. Lines without ``CHEMBL`` are
  headings.
- ``ci9b00375_si_003.txt``, compounds: ``compound,SMILES``; a line without ``CHEMBL`` continues the SMILES
  before it, unless it is empty or has ``Page``, ``Table`` or ``SMILE`` in it. U+2010 is a minus.
- ``drug_split_id_group<n>.pickle`` (or ``.json``): ``{"train": [...], "val": [...], "test": [...]}``, assay
  numbers; 4,100, 76 and 100 of them in groups 1, 2, 3 and 4.

TRN compounds are an assay's support, TST compounds its queries: the "realistic" division of the paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from trlearner.experiments.data.fingerprints import LONGEST
from trlearner.experiments.data.measurements import Measurement
from trlearner.experiments.data.pickled import load_arrays

ACTIVITIES, COMPOUNDS = "ci9b00375_si_002.txt", "ci9b00375_si_003.txt"
SPLITS = {"train": "train", "validation": "val", "test": "test"}
MINUS = str.maketrans({"\u2010": "-", "\u2212": "-", "\ufffd": "-"})


def read(folder: Path) -> list[Measurement]:
    """All measurements in the two files.

    Raises:
        ValueError: Where a file is not as described above, by line.
    """
    smiles = compounds(folder / COMPOUNDS)
    path, found = folder / ACTIVITIES, []
    for number, line in _lines(path):
        if "CHEMBL" not in line:
            continue
        try:
            compound, assay, activity, part = _activity(line)
        except ValueError:
            raise ValueError(
                f"{path}:{number}: expected 'compound assay pIC50 prediction TRN|TST', five fields with "
                f"blanks between them, got {line!r}."
            ) from None
        if compound not in smiles:
            raise ValueError(
                f"{path}:{number}: compound {compound} is not in {COMPOUNDS}, where "
                f"{len(smiles)} are. Is that file complete?"
            )
        found.append(Measurement(assay, smiles[compound], activity, support=part.upper() == "TRN"))
    if not found:
        raise ValueError(f"{path} has no line with a ChEMBL number, so no measurement.")
    return found


def compounds(path: Path) -> dict[str, str]:
    """SMILES by ChEMBL number."""
    smiles: dict[str, str] = {}
    current = None
    for number, line in _lines(path):
        if "CHEMBL" in line:
            current, _, start = line.partition(",")
            if not start:
                raise ValueError(f"{path}:{number}: expected 'compound,SMILES', got {line!r}.")
            smiles[current] = start.split(",")[0]
        elif line and not any(word in line for word in ("Page", "Table", "SMILE")):
            if current is None:
                raise ValueError(
                    f"{path}:{number}: expected 'compound,SMILES' before the first line that continues "
                    f"a SMILES, got {line!r}."
                )
            smiles[current] += line
    for name, text in smiles.items():
        if len(text) > LONGEST:
            raise ValueError(
                f"{path}: the SMILES of {name} must have at most {LONGEST} characters, got {len(text)}."
            )
    # U+FFFD, an unreadable byte, stays: RDKit refuses it, and then it is reported.
    return {name: text.replace("\u2010", "-") for name, text in smiles.items()}


def split(path: Path) -> dict[str, tuple[str, ...]]:
    """The names of each split's assays, from a pickle or JSON file.

    Raises:
        ValueError: It is not as described above, or the pickle holds more than numbers and arrays.
    """
    try:
        groups = json.loads(path.read_text()) if path.suffix == ".json" else load_arrays(path)
        return {name: tuple(str(int(i)) for i in groups[key]) for name, key in SPLITS.items()}
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f'{path}: expected {{"train": [...], "val": [...], "test": [...]}} with assay numbers, got '
            f"{type(error).__name__}: {error} If you trust the file, write it as {path.stem}.json with "
            "plain lists."
        ) from None


def _activity(line: str) -> tuple[str, str, float, str]:
    compound, assay, activity, prediction, part = line.split()
    if part.upper() not in ("TRN", "TST"):
        raise ValueError(part)
    float(prediction.translate(MINUS))
    value = float(activity.translate(MINUS))
    if not math.isfinite(value):
        raise ValueError(activity)
    return compound, str(int(assay)), value, part


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            yield number, line.strip()
