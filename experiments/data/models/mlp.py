"""The 1-40-40-1 net of sinusoid regression (Finn et al. 2017)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def mlp(inputs: int = 1, hidden: int = 40, outputs: int = 1) -> nn.Sequential:
    """Two hidden ReLU layers as ``features``, a linear ``head``.

    Example:
        >>> [name for name, _ in mlp().named_children()]
        ['features', 'head']
    """
    features = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    )
    return nn.Sequential(OrderedDict(features=features, head=nn.Linear(hidden, outputs)))
