"""Conv-4: the small network of few-shot image classification (Vinyals et al. 2016, Finn et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn


class Conv4(nn.Module):
    """Four times a 3 x 3 convolution, BatchNorm, ReLU and a halving, then one linear layer.

    BatchNorm normalizes with the batch at hand, here and in MAML's own experiments; it keeps no
    statistics.

    Args:
        ways: Classes.
        channels: Of an image.
        size: Its height and width, at least 16.
        filters: Of each convolution; 32 for miniImageNet with MAML, else 64.

    Example:
        >>> import torch
        >>> Conv4(ways=5, channels=1, size=28)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(self, ways: int, channels: int, size: int, filters: int = 32) -> None:
        super().__init__()
        if size < 16:
            raise ValueError(
                f"images must be at least 16 pixels wide, for four halvings, got {size}."
            )
        blocks = [_block(i, filters) for i in (channels, filters, filters, filters)]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(filters * (size // 16) ** 2, ways)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[images, ways]`` for ``[images, channels, size, size]``."""
        return self.head(self.features(images))


def _block(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, padding=1),
        nn.BatchNorm2d(filters, track_running_stats=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
