"""The pictures that a monitor draws."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trlearner.monitor.contributors import contributors
from trlearner.monitor.heatmap import heatmap, mosaic
from trlearner.monitor.history import History
from trlearner.monitor.order import clustered
from trlearner.monitor.scalars import GROUP

HEADS = 4
"""So many heads are drawn, in the order of `clustered`."""
SMALL = 128


def of_step(
    found: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    families: Sequence[Hashable] | None,
    step: int,
) -> dict[str, NDArray[np.uint8]]:
    """M in both orders, by head, and the weights that were used.

    Args:
        found: ``relations``, ``weights`` and ``heads``.
        names: One a task.
        families: Of the tasks, if they are known.
        step: Said in the titles.
    """
    m, heads = found["relations"], found["heads"]
    order = clustered(m)
    ordered, block = [names[i] for i in order], np.ix_(order, order)
    blank = [""] * len(m)
    drawn = [heatmap(h[block], blank, f"head {k}", side=SMALL) for k, h in enumerate(heads[:HEADS])]
    pictures = {
        GROUP + "relations/as_given": heatmap(m, names, f"relations M, step {step}"),
        GROUP + "relations/clustered": heatmap(
            m[block], ordered, f"M, related tasks together, step {step}"
        ),
        GROUP + "relations/heads": mosaic(drawn),
        GROUP + "weights/used": heatmap(
            found["weights"][block], ordered, f"weights: who (column) speaks for row, step {step}"
        ),
    }
    if families is not None:
        labels = [str(family) for family in families]
        order = np.argsort(np.array(labels), kind="stable")
        pictures[GROUP + "relations/by_family"] = heatmap(
            m[np.ix_(order, order)], [labels[i] for i in order], f"M by families, step {step}"
        )
    return pictures


def of_memory(
    models: NDArray[Any], weights: NDArray[Any], step: int
) -> dict[str, NDArray[np.uint8]]:
    """Which remembered models contribute to which new tasks; nothing where none does.

    Args:
        models: Which ones ``[tasks, kept]``.
        weights: Their coefficients ``[tasks, kept]``.
        step: Said in the title.
    """
    if not models.size:
        return {}
    matrix, shown = contributors(models, weights)
    rows, columns = [str(i) for i in range(len(matrix))], [str(model) for model in shown]
    title = f"how much model (column) contributes to new task (row), step {step}"
    return {GROUP + "memory/coefficients": heatmap(matrix, rows, title, columns=columns)}


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
