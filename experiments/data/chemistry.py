"""Made-up chemistry: assays whose families are known, without any data and without RDKit.

A compound is a scaffold with some of 24 substituents, each of which sets a few bits of its fingerprint.
An assay measures compounds of three scaffolds. Its activity is a weight for each substituent, some
pairs of substituents that act together, an offset, and noise:

    y = sum_i w_i s_i + sum_(i, j) c_ij s_i s_j + b + noise

The assays of a family share c and most of w; that is what there is to learn from other assays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from trlearner.experiments.data.assays import Table

SUBSTITUENTS, SCAFFOLDS, PAIRS = 24, 12, 12
SIZES = (40, 120)
"""The fewest and the most compounds of an assay."""

OWN = 0.4
"""How much of an assay's weights is its own, relative to its family's."""

ASSAYS = {"train": 96, "validation": 24, "test": 48, "shifted": 24}
"""How many there are; the shifted ones are of as many families again, which no other split has."""


def draw(
    families: int = 8, bits: int = 256, noise: float = 0.3, seed: int = 0
) -> tuple[Table, dict[str, tuple[str, ...]]]:
    """All assays, and their names by split; a name begins with its family, e.g. ``family3/assay007``.

    Args:
        families: How many kinds of assays there are.
        bits: Of a fingerprint; a multiple of 8.
        noise: Standard deviation of a measurement, where activities themselves have about 1.
        seed: Another seed makes another chemistry.
    """
    if families < 1 or bits <= 0 or bits % 8:
        raise ValueError(
            f"families must be at least 1 and bits a multiple of 8, got {families}, {bits}."
        )
    generator = torch.Generator().manual_seed(seed)
    family = torch.cat(
        [
            torch.arange(count) % families + (families if split == "shifted" else 0)
            for split, count in ASSAYS.items()
        ]
    )
    size = torch.randint(SIZES[0], SIZES[1] + 1, (len(family),), generator=generator)
    there, prints = _compounds(len(family), bits, generator)
    value = _activities(there, family, noise, generator)
    kept = torch.arange(SIZES[1]) < size[:, None]
    names = tuple(f"family{f}/assay{i:03}" for i, f in enumerate(family.tolist()))
    table = Table(
        bits=torch.from_numpy(np.packbits(prints[kept].numpy(), axis=1)),
        compound=torch.arange(int(size.sum())),
        value=value[kept],
        size=size,
        names=names,
    )
    ends = np.cumsum([0, *ASSAYS.values()])
    return table, {s: names[ends[i] : ends[i + 1]] for i, s in enumerate(ASSAYS)}


def _compounds(assays: int, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Substituents ``[assays, compounds, SUBSTITUENTS]`` and bits of compounds, as booleans."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    sets_bit = uniform(SUBSTITUENTS, bits) < 4 / bits
    core_bit = uniform(SCAFFOLDS, bits) < 16 / bits
    series = uniform(assays, SCAFFOLDS).argsort(1)[:, :3]
    which = torch.randint(3, (assays, SIZES[1]), generator=generator)
    there = uniform(assays, SIZES[1], SUBSTITUENTS) < 0.25
    counts = there.float() @ sets_bit.float()
    return there, core_bit[series.gather(1, which)] | (counts > 0)


def _activities(there: Tensor, family: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """``[assays, compounds]``."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kinds, assays = int(family.max()) + 1, len(family)
    shared = normal(kinds, SUBSTITUENTS)[family]
    weights = (shared + OWN * normal(assays, SUBSTITUENTS)) / (1 + OWN**2) ** 0.5
    pairs = torch.rand(kinds, SUBSTITUENTS, generator=generator).argsort(1)[family]
    left, right = pairs[:, :PAIRS], pairs[:, PAIRS : 2 * PAIRS]
    s = there.float()
    both = s.gather(2, left[:, None].expand(-1, s.shape[1], -1)) * s.gather(
        2, right[:, None].expand(-1, s.shape[1], -1)
    )
    y = (s * weights[:, None]).sum(2) + 2 * (both * normal(kinds, PAIRS)[family][:, None]).sum(2)
    y = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)
    return y + 0.5 * normal(assays, 1) + noise * normal(*y.shape)
