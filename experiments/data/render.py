"""Grey pictures of meshes, by a z-buffer in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from trlearner.experiments.data.mesh import Mesh

AMBIENT = 0.25
"""What a surface sends back that no light falls on; the background is black."""

LIGHT = (-0.35, 0.55, 0.75)
"""Towards the light, as the camera sees it: over its left shoulder. With a light at the camera itself,
the two visible sides of a box seen from its edge would be equally bright."""

OVERSAMPLE = 2
"""Pixels are averages of so many squared."""


def render(
    mesh: Mesh,
    azimuth: Tensor,
    elevation: Tensor,
    size: int = 128,
    distance: float = 4.0,
    margin: float = 0.95,
) -> Tensor:
    """An object of the unit sphere, seen from its front when azimuth and elevation are zero.

    Args:
        mesh: Within the unit sphere, as `Mesh.normalized` makes it.
        azimuth: How far it is turned about the vertical, its front towards the right: ``[views]``.
        elevation: How far the camera is above the horizon: ``[views]``, in radians.
        size: Of the pictures, in pixels.
        distance: Of the camera from the centre, at least 1.5; ``math.inf`` is a parallel projection.
        margin: The unit sphere fills this part of the picture.

    Returns:
        ``[views, size, size]`` from 0, the background, to 1.
    """
    views = [
        _view(mesh, float(a), float(e), size * OVERSAMPLE, distance, margin)
        for a, e in zip(azimuth, elevation, strict=True)
    ]
    return avg_pool2d(torch.stack(views), OVERSAMPLE)


def _view(
    mesh: Mesh, azimuth: float, elevation: float, size: int, distance: float, margin: float
) -> Tensor:
    corners = (mesh.vertices @ _rotation(azimuth, elevation).T)[mesh.triangles]
    shade = _shade(corners, distance)
    points = _project(corners, distance)
    # The unit sphere's outline has the radius 1 / sqrt(1 - 1 / distance^2) in the plane of its centre.
    scale = margin * size / 2 * math.sqrt(1 - 1 / distance**2)
    centred = points[..., :2] * torch.tensor([scale, -scale]) + size / 2
    pixel, depth, triangle = _fragments(centred, points[..., 2], size)
    # One number holds depth above triangle, so that the nearest triangle of a pixel is its maximum.
    near = ((depth.double() + 4) * 2**27).long() << 32 | triangle
    buffer = torch.full((size * size,), -1).scatter_reduce_(0, pixel, near, "amax")
    # Nothing there, -1, ends in ones like no triangle; it becomes the last shade, the background.
    shown = (buffer & (2**32 - 1)).clamp_max(len(shade))
    return torch.cat([shade, torch.zeros(1)]).index_select(0, shown).view(size, size)


def _rotation(azimuth: float, elevation: float) -> Tensor:
    """Turn about the vertical, then tip the top towards the camera."""
    c, s = math.cos(azimuth), math.sin(azimuth)
    d, t = math.cos(elevation), math.sin(elevation)
    tip = torch.tensor([[1.0, 0.0, 0.0], [0.0, d, -t], [0.0, t, d]])
    return tip @ torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _project(points: Tensor, distance: float) -> Tensor:
    """Perspective that keeps planes planes, so that depth too is linear between pixels."""
    return points / (1 - points[..., 2:] / distance)


def _shade(corners: Tensor, distance: float) -> Tensor:
    """Lambert's law, for either side of a triangle: which one is outside, many files leave open."""
    a, b, c = corners.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    normal = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-20)
    to_camera = torch.tensor([0.0, 0.0, 1.0]) - corners.mean(1) / distance
    side = torch.where((normal * to_camera).sum(1) < 0, -1.0, 1.0)
    light = torch.tensor(LIGHT) / math.hypot(*LIGHT)
    return AMBIENT + (1 - AMBIENT) * (side * (normal @ light)).clamp(0, 1)


def _fragments(corners: Tensor, depth: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels whose middle lies in a triangle: their place, depth there, and which triangle.

    Every triangle is cut into rows of pixels and every row into pixels, so that the work grows with
    what is covered, and not with the boxes around triangles.
    """
    y = corners[..., 1]
    first = (y.amin(1) - 0.5).ceil().clamp(0, size).long()
    triangle, row = _ranges(first, (y.amax(1) - 0.5).ceil().clamp(0, size).long())
    left, right = _crossings(corners[triangle], row + 0.5)
    first = (left - 0.5).ceil().clamp(0, size).long()
    line, column = _ranges(first, (right - 0.5).ceil().clamp(0, size).long())
    triangle, row = triangle.index_select(0, line), row.index_select(0, line)
    return row * size + column, _depths(corners, depth, triangle, column, row), triangle


def _ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """All of ``range(first[i], last[i])`` behind each other, with i of each."""
    count = (last - first).clamp_min(0)
    which = torch.repeat_interleave(torch.arange(len(first)), count)
    start = first - (count.cumsum(0) - count)
    return which, torch.arange(len(which)) + start.index_select(0, which)


def _crossings(corners: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where a row enters a triangle and where it leaves; the two edges that end above and below it."""
    ax, ay = corners.unbind(2)
    bx, by = corners.roll(-1, 1).unbind(2)
    y = y[:, None]
    x = ax + (y - ay) * (bx - ax) / torch.where(ay == by, 1.0, by - ay)
    crossed = (ay < y) != (by < y)
    return (
        x.masked_fill(~crossed, math.inf).amin(1),
        x.masked_fill(~crossed, -math.inf).amax(1),
    )


def _depths(
    corners: Tensor, depth: Tensor, triangle: Tensor, column: Tensor, row: Tensor
) -> Tensor:
    """How near each fragment is: depth is ``p x + q y + r`` over the picture."""
    (ax, ay), (bx, by) = (corners[:, i].sub(corners[:, 0]).T for i in (1, 2))
    az, bz = depth[:, 1] - depth[:, 0], depth[:, 2] - depth[:, 0]
    area = ax * by - ay * bx
    p, q = (az * by - bz * ay) / area, (bz * ax - az * bx) / area
    r = depth[:, 0] - p * corners[:, 0, 0] - q * corners[:, 0, 1]
    # A triangle seen from its edge has no such plane, but still a nearest and a farthest corner.
    low, high = depth.aminmax(dim=1)
    flat = ~(p + q + r).isfinite()
    plane = torch.stack([p.masked_fill(flat, 0), q.masked_fill(flat, 0), r.where(~flat, low)])
    p, q, r, low, high = torch.cat([plane, torch.stack([low, high])]).index_select(1, triangle)
    return (p * (column + 0.5) + q * (row + 0.5) + r).clamp(low, high)
