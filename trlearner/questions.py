"""Which queries the relation term asks about."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from trlearner.functional import take
from trlearner.samples import Samples
from trlearner.seam import TaskLearner


class Questions(NamedTuple):
    """What models are asked about, ``[tasks, samples, ...]``."""

    chosen: Samples  # the queries whose answers count
    features: Tensor
    mask: Tensor | None
    later: Tensor | None  # [tasks, chosen]: which answers count, where more are asked for


def questions(
    learner: TaskLearner, query: Samples, features: Tensor, choice: Tensor | None
) -> Questions:
    """The chosen queries, or all where layers couple samples and must see all of them.

    Args:
        learner: Whose models are asked.
        query: All queries.
        features: What ``engine.embed`` made of them.
        choice: ``[tasks, chosen]``; ``None`` for all.
    """
    if choice is None:
        return Questions(query, features, query.mask, None)
    chosen = query.choose(choice)
    if learner.couples_samples():
        return Questions(chosen, features, query.mask, choice)
    return Questions(chosen, take(features, choice), chosen.mask, None)
