"""Printed characters made to look as if written by many hands: turned, slanted, stretched, wobbly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Hand:
    """How far drawings stray from print; lengths in pixels of the drawing.

    Args:
        side: The drawing is so large.
        turn: Largest angle, in degrees.
        slant: Largest shear.
        stretch: Width over height changes by up to this factor, either way.
        least: The smallest and ...
        most: ... the largest extent of a character, along its longer side.
        wobble: Standard deviation of the displacement of 4 x 4 points, between which it is smooth.
        shift: How far its middle may be from the drawing's, at most, along each axis.
        margin: This much stays free at the edges, but for the wobble.
    """

    side: int = 28
    turn: float = 16.0
    slant: float = 0.3
    stretch: float = 1.35
    least: float = 15.0
    most: float = 22.0
    wobble: float = 0.9
    shift: float = 3.0
    margin: float = 2.0


def drawn(prints: Tensor, boxes: Tensor, hand: Hand, generator: torch.Generator) -> Tensor:
    """Drawings of printed characters.

    Args:
        prints: uint8 ``[drawings, 1, canvas, canvas]``, ink is high, each in the middle of its canvas.
        boxes: ``[drawings, 2]``, the width and height of each one's ink.
        hand: How they are drawn.
        generator: Where chance comes from.

    Returns:
        uint8 ``[drawings, 1, side, side]``.
    """
    n, fine = len(prints), 2 * hand.side  # drawn twice as fine, then averaged
    matrix, shift = _affine(boxes.float(), hand, generator)
    centers = (torch.arange(fine) + 0.5) / 2 - hand.side / 2
    at = torch.stack([centers.expand(fine, fine), centers[:, None].expand(fine, fine)], -1)
    coarse = hand.wobble * torch.randn(n, 2, 4, 4, generator=generator)
    smooth = _cubic(4, fine)
    wobble = smooth @ coarse @ smooth.T
    paper = at - shift[:, None, None] + wobble.permute(0, 2, 3, 1)
    source = torch.einsum("nij,nyxj->nyxi", torch.linalg.inv(matrix), paper)
    source = source / (prints.shape[-1] / 2)
    sharp = F.grid_sample(prints.float(), source, mode="bilinear", align_corners=False)
    return F.avg_pool2d(sharp, 2).round_().clamp_(0, 255).byte()


def _affine(boxes: Tensor, hand: Hand, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """From the print's middle to the drawing's: matrices ``[drawings, 2, 2]``, shifts ``[drawings, 2]``."""
    turn, slant, stretch, size, *shift = torch.rand(6, len(boxes), generator=generator)
    turn = math.radians(hand.turn) * (2 * turn - 1)
    slant = hand.slant * (2 * slant - 1)
    stretch = hand.stretch ** (stretch - 0.5)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    rotate = _matrices(turn.cos(), -turn.sin(), turn.sin(), turn.cos())
    shear = _matrices(one, slant, zero, one)
    scale = _matrices(stretch, zero, zero, 1 / stretch)
    matrix = rotate @ shear @ scale
    extent = (matrix.abs() @ boxes[:, :, None]).squeeze(2)  # of the turned box
    size = hand.least + (hand.most - hand.least) * size
    factor = size / extent.amax(1)
    room = (hand.side / 2 - hand.margin - factor[:, None] * extent / 2).clamp(0, hand.shift)
    return matrix * factor[:, None, None], room * (2 * torch.stack(shift, 1) - 1)


def _cubic(points: int, places: int) -> Tensor:
    """Interpolates from some points to more places between them: ``[places, points]``."""
    return F.interpolate(
        torch.eye(points)[None, None], (places, points), mode="bicubic", align_corners=True
    )[0, 0]


def _matrices(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], 1), torch.stack([c, d], 1)], 1)
