"""What each rank's tasks bring to the relation term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from trlearner.distributed.collective import Ranks
from trlearner.distributed.exchange import gather
from trlearner.distributed.kind import Kind


@dataclass(frozen=True, eq=False)
class Asked:
    """What a rank brings to the relation term; on a rank without tasks, of length 0.

    Attributes:
        embeddings: ``[own tasks, dim]``.
        features: The queries that models are asked about, as they take them.
        prototypes: ``[own tasks, classes, features]``, if classes are aligned.
        mask: ``[own tasks, queries]``, if there is one on any rank.
        choice: ``[own tasks, chosen]``, if queries are chosen after the forward pass.
    """

    embeddings: Tensor
    features: Tensor
    prototypes: Tensor | None
    mask: Tensor | None
    choice: Tensor | None

    def gathered(
        self, ranks: Ranks, counts: Sequence[int], kinds: Mapping[str, Kind | None]
    ) -> Asked:
        """The same of all ranks' tasks, with a graph; `kinds` by name, as the ranks agreed on them."""
        there = {name: kind for name, kind in kinds.items() if kind is not None}
        parts = gather(ranks, [vars(self)[n] for n in there], list(there.values()), counts)
        return replace(self, **dict(zip(there, parts, strict=True)))
