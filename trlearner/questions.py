"""Which queries the relation term asks about."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
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


def query_keys(share: float, tasks: int, total: int, generator: torch.Generator) -> Tensor | None:
    """A random number for each query ``[tasks, queries]``; ``None`` where all are used.

    Args:
        share: Of each task's queries that is used.
        tasks: How many there are.
        total: Of queries of each task.
        generator: Draws.
    """
    if math.ceil(share * total) == total:
        return None
    return torch.rand(tasks, total, generator=generator, device=generator.device)


def choose_queries(share: float, keys: Tensor, query: Samples) -> Tensor:
    """The share of queries with the lowest keys ``[tasks, chosen]``, real ones first."""
    keys = keys.to(query.x.device, non_blocking=True)  # the other way it would be unsafe
    if query.mask is not None:
        keys = torch.where(query.mask, keys, 2.0)
    return keys.argsort(1)[:, : math.ceil(share * query.x.shape[1])]
