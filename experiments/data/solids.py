"""Boxes, cylinders, balls and handles, of which `shapes` makes objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from trlearner.experiments.data.mesh import Mesh

Point = tuple[float, float, float]

CUBE = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]) / 2
FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
SIDES = 20


def joined(parts: Sequence[Mesh]) -> Mesh:
    """Several meshes as one."""
    shift = torch.tensor([0] + [len(part.vertices) for part in parts]).cumsum(0)
    triangles = [part.triangles + s for part, s in zip(parts, shift, strict=False)]
    return Mesh(torch.cat([part.vertices for part in parts]), torch.cat(triangles))


def box(centre: Point, size: Point, taper: float = 1.0, lean: float = 0.0) -> Mesh:
    """A box; its top is `taper` times as large as its bottom and shifted by `lean` along z."""
    corners = CUBE.clone()
    top = corners[:, 1] > 0
    corners[top] = corners[top] * torch.tensor([taper, 1.0, taper])
    corners = corners * torch.tensor(size) + torch.tensor(centre)
    corners[top, 2] += lean
    triangles = [t for a, b, c, d in FACES for t in ((a, b, c), (a, c, d))]
    return Mesh(corners, torch.tensor(triangles))


def rod(start: Point, end: Point, radius: float, radius_end: float | None = None) -> Mesh:
    """A cylinder, or a cone, between two points."""
    a, b = torch.tensor([start, end], dtype=torch.float32)
    axis = (b - a) / (b - a).norm()
    other = torch.eye(3)[axis.abs().argmin()]
    u = torch.linalg.cross(axis, other)
    u = u / u.norm()
    angle = torch.arange(SIDES) * (2 * math.pi / SIDES)
    ring = angle.cos()[:, None] * u + angle.sin()[:, None] * torch.linalg.cross(axis, u)
    last = radius if radius_end is None else radius_end
    return _tube([a + 1e-6 * ring, a + radius * ring, b + last * ring, b + 1e-6 * ring])


def ball(centre: Point, size: Point) -> Mesh:
    """An ellipsoid of these widths."""
    height = torch.linspace(-math.pi / 2, math.pi / 2, SIDES // 2)
    angle = torch.arange(SIDES) * (2 * math.pi / SIDES)
    rings = [
        torch.stack([h.cos() * angle.cos(), h.sin().expand(SIDES), h.cos() * angle.sin()], 1)
        for h in height
    ]
    return _tube([r * torch.tensor(size) / 2 + torch.tensor(centre) for r in rings])


def arc(centre: Point, width: float, height: float, radius: float) -> Mesh:
    """A handle: half a ring in the plane of x and y, bulging towards +x."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 9)
    path = [(width * math.cos(a), height / 2 * math.sin(a), 0.0) for a in angle]
    points = [(centre[0] + x, centre[1] + y, centre[2] + z) for x, y, z in path]
    return joined([rod(a, b, radius) for a, b in pairwise(points)])


def _tube(rings: list[Tensor]) -> Mesh:
    """A skin over rings of points."""
    i = torch.arange(SIDES)
    j = (i + 1) % SIDES
    skin = []
    for k in range(len(rings) - 1):
        a, b = k * SIDES, (k + 1) * SIDES
        skin += [torch.stack([a + i, b + i, b + j], 1), torch.stack([a + i, b + j, a + j], 1)]
    return Mesh(torch.cat(rings), torch.cat(skin))
