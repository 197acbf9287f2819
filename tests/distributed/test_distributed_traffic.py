"""Bytes on the wire are counted."""

from __future__ import annotations

from rank_problem import Problem
from ranks import Ranks

import trlearner as tr
from trlearner.distributed import sync_gradients, traffic


def counted(rank: int, size: int) -> tuple[dict[str, tuple[int, int, int]], int, str]:
    """Of a step of MAML with tasks ``[3, 2]``."""
    problem = Problem([3, 2])
    learner, reg = problem.made()
    step = tr.MetaStep(learner, reg)
    share = problem.batch([slice(0, 3), slice(3, 5)][rank])
    traffic()
    step(share).loss.backward()
    sync_gradients(learner, reg)
    text = str(traffic(reset=False))
    rows = traffic().rows
    numbers = sum(p.numel() for p in step.parameters())
    return {n: (r.calls, r.sent, r.received) for n, r in rows.items()}, numbers, text


def test_bytes_on_the_wire_are_those_counted_by_hand(two: Ranks) -> None:
    """Tasks [3, 2], 6 queries of 2 inputs and 3 outputs, embeddings of 5, all float64."""
    other = {0: 1, 1: 0}
    tasks = {0: 3, 1: 2}
    for rank, (rows, numbers, text) in enumerate(two(counted)):
        mine, theirs = tasks[rank], tasks[other[rank]]
        # The rank with fewer tasks is filled up: 3 rows go either way.
        row = 8 * (5 + 6 * 2)
        assert rows["tasks"] == (1, 3 * row, 3 * row)
        # A mixture of each of the other's tasks goes there, one of each of mine comes.
        mixture = 8 * 6 * 3
        assert rows["mixtures"] == (1, theirs * mixture, mine * mixture)
        assert rows["gradients of mixtures"] == (1, mine * mixture, theirs * mixture)
        # Of a task's row only the embedding is wanted a gradient of: inputs are no parameters.
        assert rows["gradients of tasks"] == (1, theirs * 8 * 5, mine * 8 * 5)
        # Seven whole numbers about the rank, 75 about its tensors, a byte for every parameter.
        assert rows["headers"] == (3, 8 * 7 + 8 * (1 + 6 * 12 + 2) + 5, 8 * 7 + 8 * 75 + 5)
        assert rows["losses"] == (1, 8 * 3, 8 * 3)
        assert rows["gradients"] == (1, 8 * numbers, 8 * numbers)
        assert len(rows) == 7
        assert text.splitlines()[0].split() == ["purpose", "calls", "sent", "received"]
        assert str(sum(sent for _, sent, _ in rows.values())) in text.splitlines()[-1]
