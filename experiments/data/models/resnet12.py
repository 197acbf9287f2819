"""ResNet-12: the larger network of few-shot image classification (Lee et al. 2019, arXiv 1904.03758)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ResNet12(nn.Module):
    """Four residual blocks of three 3 x 3 convolutions, averaged over the image, then one linear layer.

    As in MetaOptNet, with LeakyReLU 0.1 and widths 64-160-320-640, but without DropBlock; BatchNorm
    normalizes with the batch at hand and keeps no statistics.

    Args:
        ways: Classes.
        channels: Of an image.
        widths: Filters of each block; each halves the image.

    Example:
        >>> import torch
        >>> network = ResNet12(ways=5, channels=3, widths=(4, 8, 8, 16))
        >>> network(torch.zeros(2, 3, 84, 84)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self, ways: int, channels: int, widths: Sequence[int] = (64, 160, 320, 640)
    ) -> None:
        super().__init__()
        sides = zip((channels, *widths), widths, strict=False)
        blocks = [Block(before, after) for before, after in sides]
        self.features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], ways)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[images, ways]`` for ``[images, channels, height, width]``."""
        return self.head(self.features(images))


class Block(nn.Module):
    """``halve(leaky(conv(leaky(conv(leaky(conv(x))))) + shortcut(x)))``, a BatchNorm after each conv.

    Args:
        channels: Of what comes in.
        width: Of what goes out.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_normed(channels, width, 3),
            nn.LeakyReLU(0.1),
            *_normed(width, width, 3),
            nn.LeakyReLU(0.1),
            *_normed(width, width, 3),
        )
        self.shortcut = nn.Sequential(*_normed(channels, width, 1))
        self.out = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x) + self.shortcut(x))


def _normed(channels: int, width: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the size, without a bias, which BatchNorm would undo."""
    conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)
    return conv, nn.BatchNorm2d(width, track_running_stats=False)
