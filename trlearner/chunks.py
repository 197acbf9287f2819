"""Cross predictions within a bound on memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trlearner.seam import Engine, TaskLearner
from trlearner.types import Fast, State


def cross_in_chunks(
    engine: Engine,
    learner: TaskLearner,
    state: State,
    fast: Fast,
    features: Tensor,
    mask: Tensor | None,
    neighbours: Tensor | None,
    size: int | None,
) -> Tensor:
    """`Engine.cross`, keeping the activations of at most `size` models at once.

    The others are computed again in the backward pass, with the same random draws.

    Args:
        engine: Runs the tasks.
        learner: Whose functions are run.
        state: Its parameters and buffers.
        fast: What adaptation made of each task.
        features: What `embed` made of the queries, ``[tasks, queries, ...]``.
        mask: ``[tasks, queries]``, true where a query is real.
        neighbours: ``[models, tasks]``, whom to ask for each task; ``None`` asks all.
        size: How many models; ``None`` for all at once.

    Returns:
        ``[models, tasks, queries, *outputs]``.
    """
    models = len(next(iter(fast.values()))) if neighbours is None else len(neighbours)
    if size is None or size >= models:
        return engine.cross(learner, state, fast, features, mask, neighbours)
    chunks = []
    for first in range(0, models, size):
        part = slice(first, first + size)
        some = {n: v[part] for n, v in fast.items()} if neighbours is None else fast
        who = None if neighbours is None else neighbours[part]
        chunks.append(
            checkpoint(engine.cross, learner, state, some, features, mask, who, use_reentrant=False)
        )
    return torch.cat(chunks)
