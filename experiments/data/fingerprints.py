"""Compounds as bits: SMILES to Morgan fingerprints, computed once and kept on disk.

Morgan (ECFP-like) fingerprints: Rogers & Hahn, J. Chem. Inf. Model. 50, 742 (2010); made by RDKit's
``rdFingerprintGenerator``. Without chirality, as RDKit has it by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from trlearner.experiments.data.arrays import stored

FORMAT = 1
"""Raised when fingerprints that are already on disk are not to be used any more."""

LONGEST = 2000
"""Characters of a SMILES. Drugs have 100; RDKit takes minutes, or dies, over tens of thousands."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The fingerprints of a list of SMILES.

    Attributes:
        packed: Of each distinct compound, ``[compounds, bits / 8]`` of uint8, first bit highest.
        compound: Which compound each SMILES is, ``[smiles]``; -1 where RDKit can't read it. Two
            SMILES are one compound where RDKit writes both in the same way.
    """

    packed: np.ndarray
    compound: np.ndarray

    def unreadable(self) -> list[int]:
        """The positions of SMILES that RDKit can't read."""
        return np.flatnonzero(self.compound < 0).tolist()


def fingerprints(smiles: Sequence[str], radius: int = 2, bits: int = 1024) -> Fingerprints:
    """The Morgan fingerprints of SMILES, from the disk if the same list was asked for before.

    Args:
        smiles: In any order, with repetitions.
        radius: How many bonds around an atom a bit may look.
        bits: A multiple of 8.

    Raises:
        ModuleNotFoundError: RDKit is not installed.
    """
    if bits <= 0 or bits % 8:
        raise ValueError(f"bits must be a positive multiple of 8, e.g. 1024 or 2048, got {bits}.")
    for text in smiles:
        check_smiles(text)
    rdkit = _rdkit()
    # Another version of RDKit may read or hash a compound differently.
    key = [FORMAT, rdkit.__version__, radius, bits, *smiles]
    arrays = stored("fingerprints", key, lambda: _compute(smiles, radius, bits))
    return Fingerprints(arrays["packed"], arrays["compound"])


def check_smiles(smiles: str) -> None:
    """Refuses what RDKit would work on for ever, or run out of its stack over.

    Raises:
        ValueError: It is too long.
    """
    if len(smiles) > LONGEST:
        raise ValueError(
            f"a SMILES must have at most {LONGEST} characters, got {len(smiles)}: {smiles[:20]}... "
            "Leave this compound out."
        )


def _compute(smiles: Sequence[str], radius: int, bits: int) -> dict[str, np.ndarray]:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    of_smiles: dict[str, int] = {}
    of_canonical: dict[str, int] = {}
    packed = []
    with rdBase.BlockLogs():  # who reads the table names what could not be read
        for text in smiles:
            if text in of_smiles:
                continue
            molecule = Chem.MolFromSmiles(text)
            if molecule is None or molecule.GetNumAtoms() == 0:
                of_smiles[text] = -1
                continue
            number = of_canonical.setdefault(Chem.MolToSmiles(molecule), len(packed))
            of_smiles[text] = number
            if number == len(packed):
                packed.append(np.packbits(generator.GetFingerprintAsNumPy(molecule)))
    return {
        "packed": np.array(packed, dtype=np.uint8).reshape(len(packed), bits // 8),
        "compound": np.array([of_smiles[text] for text in smiles], dtype=np.int64),
    }


def _rdkit() -> ModuleType:
    try:
        import rdkit
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "SMILES are read by RDKit, which is not installed. Install it with "
            "pip install 'trlearner[drugs]'. Without it, drugs/synthetic runs.",
            name="rdkit",
        ) from None
    return rdkit
