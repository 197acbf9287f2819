"""Relations as a picture, for a notebook or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from trlearner.base.checks import check_flag, check_instance, check_whole
from trlearner.base.checks import shown as as_shown
from trlearner.diagnostics.monitor.order import clustered


def plot_relations(
    relations: Float[Tensor, "tasks tasks"],
    names: Sequence[Any] | None = None,
    *,
    title: str = "",
    cluster: bool = False,
    scale: int = 2,
) -> Any:
    """M as a picture, which a notebook shows and ``.save("m.png")`` or ``.save("m.pdf")`` keeps.

    Args:
        relations: M, e.g. ``out.relations`` or ``reg.relate(learner, batch)``.
        names: One a task; equal ones that stand together are written once.
        title: Above it.
        cluster: Put related tasks together.
        scale: Pixels are so many times as fine as on a screen.

    Returns:
        A ``PIL.Image.Image``.

    Raises:
        ValueError: `relations` is no square matrix, or `names` do not name all tasks.

    Example:
        >>> import torch
        >>> plot_relations(torch.eye(3), names=["sine", "line", "saw"]).mode
        'RGB'
    """
    from PIL import Image

    from trlearner.diagnostics.monitor.heatmap import heatmap

    check_flag("cluster", cluster)
    check_whole("scale", scale)
    check_instance("title", title, str, "It is written above the picture.")
    if not isinstance(relations, Tensor):
        raise TypeError(
            f"relations must be a tensor [tasks, tasks], got {as_shown(relations)}. Take out.relations."
        )
    if relations.ndim != 2 or len(relations) != relations.shape[1] or not len(relations):
        raise ValueError(
            f"relations must be [tasks, tasks], got {tuple(relations.shape)}. Take out.relations."
        )
    if not (names is None or isinstance(names, Sequence)):
        raise TypeError(f"names must be a sequence, one name a task, got {as_shown(names)}.")
    if names is not None and len(names) != len(relations):
        raise ValueError(f"names must name all {len(relations)} tasks, got {len(names)}.")
    m = relations.detach().double().cpu().numpy()
    shown = [str(n) for n in (range(len(m)) if names is None else names)]
    if cluster:
        order = clustered(m)
        m, shown = m[np.ix_(order, order)], [shown[i] for i in order]
    return Image.fromarray(heatmap(m, shown, title, scale))
