"""The pictures that a monitor draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trlearner.monitor.heatmap import beside, heatmap
from trlearner.monitor.history import History
from trlearner.monitor.order import clustered
from trlearner.monitor.scalars import GROUP

HEADS = 4
"""So many heads are drawn."""


def of_step(
    found: Mapping[str, NDArray[Any]], names: Sequence[str], step: int
) -> dict[str, NDArray[np.uint8]]:
    """M in both orders, by head, and the weights that were used.

    Args:
        found: ``relations``, ``weights`` and ``heads``.
        names: One a task.
        step: Said in the titles.
    """
    m, heads = found["relations"], found["heads"]
    order = clustered(m)
    ordered, block = [names[i] for i in order], np.ix_(order, order)
    drawn = [heatmap(h[block], ordered, f"head {k}, step {step}") for k, h in enumerate(heads)]
    return {
        GROUP + "relations/as_given": heatmap(m, names, f"relations M, step {step}"),
        GROUP + "relations/clustered": heatmap(
            m[block], ordered, f"relations M, related tasks together, step {step}"
        ),
        GROUP + "relations/heads": beside(drawn[:HEADS]),
        GROUP + "weights/used": heatmap(
            found["weights"][block], ordered, f"who (column) speaks for whom (row), step {step}"
        ),
    }


def of_history(history: History, names: Sequence[str], step: int) -> dict[str, NDArray[np.uint8]]:
    """The running relations between known tasks, and how often each pair was seen.

    Args:
        history: Of all steps.
        names: How to call `History.names`.
        step: Said in the titles.
    """
    mean, seen = history.mean(), history.seen()
    order = clustered(mean)
    block, ordered = np.ix_(order, order), [names[i] for i in order]
    title = f"mean relation, steps 0 to {step}"
    counts = heatmap(
        seen[block], ordered, f"pairs seen, steps 0 to {step}", digits=0, diagonal=True
    )
    return {
        GROUP + "history/relations": heatmap(mean[block], ordered, title, diagonal=True),
        GROUP + "history/seen": counts,
    }
