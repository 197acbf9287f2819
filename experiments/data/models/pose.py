"""The network of pose regression (Yin et al. 2020, arXiv 1912.03820)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

SIDE = 14
"""The encoder writes its picture anew, on so many squares of this side."""


def pose_network(size: int = 128, filters: int = 64) -> nn.Sequential:
    """An encoder to 14 x 14 numbers and four convolutions over them as ``features``; a linear ``head``.

    As the authors' ``pose_code/maml_vanilla_2.py`` has it. One deviation: their MAML has no ReLU
    between the encoder's convolutions; here they have one each, as in the same authors' CNP. BatchNorm
    has no running statistics, there and here: it takes those of the batch, in evaluation mode too.

    Args:
        size: Of the grey pictures, ``[images, 1, size, size]``; a multiple of 16.
        filters: Channels of the four convolutions.

    Example:
        >>> [name for name, _ in pose_network().named_children()]
        ['features', 'head']
    """
    if size % 16:
        raise ValueError(f"size must be a multiple of 16, for four halvings, got {size}.")
    encoder = [
        *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(48, 64, 3, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * (size // 16) ** 2, SIDE**2), nn.ReLU(), nn.Unflatten(1, (1, SIDE, SIDE))),
    ]
    blocks = [layer for i in range(4) for layer in _block(1 if i == 0 else filters, filters)]
    features = nn.Sequential(*encoder, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(features=features, head=nn.Linear(filters, 1)))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, track_running_stats=False)
    return [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU()]
