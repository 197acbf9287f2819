"""Everyday objects made of boxes, cylinders and balls: as many different ones as there are seeds.

Each family is a recipe with random measures. Every object has a front, towards +z, that tells its
orientation about the vertical; y is up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from trlearner.experiments.data.mesh import Mesh
from trlearner.experiments.data.solids import arc, ball, box, joined, rod

Draw = Callable[[float, float], float]
"""A number between two."""


def make(family: str, seed: int) -> Mesh:
    """One object, the same for the same seed.

    Example:
        >>> round(float(make("chair", seed=0).vertices.norm(dim=1).max()), 3)
        1.0
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    return joined(FAMILIES[family](draw)).normalized()


def _legs(x: float, z: float, height: float, thick: float) -> list[Mesh]:
    return [
        box((i * x, height / 2, k * z), (thick, height, thick)) for i in (-1, 1) for k in (-1, 1)
    ]


def _wheels(x: float, z: float, radius: float, back: float | None = None) -> list[Mesh]:
    ends = ((z, radius), (-z, back or radius))
    return [rod((i * x * 0.8, r, at), (i * x * 1.05, r, at), r) for i in (-1, 1) for at, r in ends]


def chair(draw: Draw) -> list[Mesh]:
    w, d, h, back = draw(0.4, 0.6), draw(0.4, 0.55), draw(0.35, 0.6), draw(0.4, 0.8)
    lean, thick = -draw(0.0, 0.15), draw(0.03, 0.07)
    parts = _legs(w / 2 - thick, d / 2 - thick, h, thick)
    parts += [box((0, h, 0), (w, 0.06, d))]
    parts += [box((0, h + back / 2, -d / 2), (w, back, 0.05), draw(0.6, 1.0), lean)]
    if draw(0, 1) > 0.5:
        parts += [box((i * w / 2, h + 0.2, 0.02), (0.05, 0.05, d)) for i in (-1, 1)]
        parts += [box((i * w / 2, h + 0.1, d / 2), (0.05, 0.2, 0.05)) for i in (-1, 1)]
    return parts


def desk(draw: Draw) -> list[Mesh]:
    w, d, h = draw(1.0, 1.6), draw(0.5, 0.8), draw(0.6, 0.8)
    chest = draw(0.3, 0.5)
    parts = [box((0, h, 0), (w, 0.05, d)), box((0, h / 2 + 0.1, -d / 2 + 0.03), (w, h * 0.6, 0.04))]
    parts += [box((w / 2 - chest / 2, h / 2, 0), (chest, h, d * 0.9))]
    parts += [box((-w / 2 + 0.05, h / 2, k * d * 0.4), (0.07, h, 0.07)) for k in (-1, 1)]
    knobs = [box((w / 2 - chest / 2, h * y, d / 2), (0.12, 0.03, 0.08)) for y in (0.3, 0.55, 0.8)]
    screen = draw(0.3, 0.5)
    parts += [box((-0.1, h + 0.1 + screen / 2, -0.1), (screen * 1.6, screen, 0.04))]
    return parts + knobs + [box((-0.1, h + 0.08, -0.12), (0.06, 0.16, 0.06))]


def mug(draw: Draw) -> list[Mesh]:
    r, h = draw(0.3, 0.5), draw(0.6, 1.1)
    parts = [rod((0, 0, 0), (0, h, 0), r * draw(0.7, 1.0), r)]
    handle = arc((0, 0, 0), draw(0.2, 0.4), h * draw(0.4, 0.8), draw(0.04, 0.07))
    spin = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    turned = handle.vertices @ spin.T + torch.tensor([0.0, h / 2, r * 0.92])
    spoon = rod((0, h * 0.8, 0), (-r * 0.8, h * draw(1.3, 1.5), -r * 0.3), 0.05)
    return [*parts, Mesh(turned, handle.triangles), spoon]


def teapot(draw: Draw) -> list[Mesh]:
    r, h = draw(0.4, 0.55), draw(0.5, 0.8)
    parts = [ball((0, h / 2, 0), (2 * r, h, 2 * r)), ball((0, h, 0), (0.15, 0.15, 0.15))]
    parts += [rod((0, h * 0.3, r * 0.8), (0, h * draw(0.8, 1.1), r * draw(1.6, 2.0)), 0.12, 0.05)]
    return [*parts, box((0, h * 0.5, -r * 1.25), (0.07, h * 0.6, 0.07)), *_teapot_bars(r, h)]


def _teapot_bars(r: float, h: float) -> list[Mesh]:
    return [box((0, h * y, -r * 1.05), (0.07, 0.07, r * 0.5)) for y in (0.22, 0.78)]


def sofa(draw: Draw) -> list[Mesh]:
    w, d, h = draw(1.2, 2.0), draw(0.6, 0.8), draw(0.3, 0.45)
    arm, back, long = draw(0.1, 0.2), draw(0.3, 0.5), draw(0.5, 1.0)
    parts = [box((0, h / 2, 0), (w, h, d)), box((0, (h + back) / 2, -d / 2), (w, h + back, 0.2))]
    parts += [box((i * w / 2, h * 0.75, 0), (arm, h * 1.5, d)) for i in (-1, 1)]
    return [*parts, box((w / 2 - d / 2, h / 2, d / 2 + long / 2), (d, h, long))]


def bed(draw: Draw) -> list[Mesh]:
    w, d, h = draw(0.8, 1.5), 1.9, draw(0.25, 0.45)
    head = draw(0.4, 0.8)
    parts = [box((0, h, 0), (w, 0.22, d)), box((0, (h + head) / 2, -d / 2), (w, h + head, 0.08))]
    parts += [box((0, h + 0.16, -d / 2 + 0.3), (w * draw(0.5, 0.9), 0.12, 0.35))]
    return parts + _legs(w / 2 - 0.05, d / 2 - 0.05, h, 0.08)


def lamp(draw: Draw) -> list[Mesh]:
    h, reach, r = draw(0.6, 1.0), draw(0.3, 0.6), draw(0.15, 0.25)
    joint, tip = (0.0, h, -reach * 0.4), (0.0, h * draw(1.0, 1.3), reach)
    parts = [rod((0, 0, 0), (0, 0.06, 0), draw(0.2, 0.3)), rod((0, 0.05, 0), joint, 0.035)]
    low = (tip[0], tip[1] - 0.25, tip[2] + 0.1)
    return [*parts, rod(joint, tip, 0.035), rod(tip, low, 0.06, r)]


def stairs(draw: Draw) -> list[Mesh]:
    steps, w, rise, run = int(draw(3, 7)), draw(0.6, 1.2), draw(0.15, 0.25), draw(0.2, 0.3)
    parts = [box((0, (i + 1) * rise / 2, -i * run), (w, (i + 1) * rise, run)) for i in range(steps)]
    return [*parts, box((w / 2 - 0.04, steps * rise + 0.2, -(steps - 1) * run), (0.08, 0.4, 0.08))]


def house(draw: Draw) -> list[Mesh]:
    w, d, h, roof = draw(0.8, 1.4), draw(0.7, 1.1), draw(0.5, 0.9), draw(0.3, 0.6)
    gable = box((0, h + roof / 2, 0), (w * 1.1, roof, d * 1.1))
    top = gable.vertices[:, 1] > h + roof / 2
    gable.vertices[top, 2] = 0.0
    parts = [box((0, h / 2, 0), (w, h, d)), gable]
    parts += [box((w * 0.3, h + roof * 0.8, -d * 0.2), (0.14, roof * 1.2, 0.14))]
    porch = draw(0.2, 0.4)
    return [*parts, box((-w * 0.2, h * 0.3, d / 2 + porch / 2), (0.3, h * 0.6, porch))]


def tap(draw: Draw) -> list[Mesh]:
    h, reach = draw(0.6, 1.0), draw(0.4, 0.8)
    parts = [rod((0, 0, 0), (0, 0.08, 0), 0.2), rod((0, 0, 0), (0, h, 0), 0.09)]
    parts += [rod((0, h, 0), (0, h, reach), 0.07), rod((0, h, reach), (0, h - 0.2, reach), 0.07)]
    side = draw(0.2, 0.4)
    return [*parts, rod((0, h * 0.5, 0), (side, h * 0.5 + 0.1, 0), 0.05)]


def corner(draw: Draw) -> list[Mesh]:
    long, short, thick, h = draw(0.9, 1.4), draw(0.4, 0.8), draw(0.2, 0.4), draw(0.2, 0.9)
    parts = [box((0, h / 2, 0), (thick, h, long))]
    parts += [box((short / 2, h / 2, long / 2 - thick / 2), (short, h, thick))]
    return [*parts, box((0, h + 0.1, -long / 2 + 0.15), (thick, draw(0.2, 0.5), 0.3))]


def camera(draw: Draw) -> list[Mesh]:
    w, h, d = draw(0.8, 1.2), draw(0.5, 0.8), draw(0.3, 0.5)
    r, long = draw(0.15, 0.28), draw(0.2, 0.6)
    parts = [box((0, h / 2, 0), (w, h, d)), box((0, h + 0.08, 0), (w * 0.3, 0.2, d * 0.7), 0.7)]
    parts += [rod((0, h / 2, d / 2), (0, h / 2, d / 2 + long), r, r * draw(0.8, 1.2))]
    return [*parts, rod((w * 0.35, h, 0), (w * 0.35, h + 0.08, 0), 0.07)]


def aeroplane(draw: Draw) -> list[Mesh]:
    r, span, chord = draw(0.1, 0.16), draw(0.7, 1.1), draw(0.2, 0.35)
    sweep = draw(0.0, 0.4)
    parts = [rod((0, 0, -0.9), (0, 0, 0.7), r * 0.5, r), rod((0, 0, 0.7), (0, 0, 1), r, 0.03)]
    parts += [_wing(i * span, chord, 0.1, sweep, 0.0) for i in (-1, 1)]
    parts += [_wing(i * span * 0.4, chord * 0.6, -0.8, sweep / 2, 0.0) for i in (-1, 1)]
    return [*parts, box((0, 0.2, -0.8), (0.04, draw(0.3, 0.5), chord), 0.6, -0.1)]


def _wing(span: float, chord: float, z: float, sweep: float, y: float) -> Mesh:
    wing = box((span / 2, y, z), (abs(span), 0.04, chord))
    tip = wing.vertices[:, 0].abs() > abs(span) / 2
    wing.vertices[tip, 2] -= sweep
    return wing


def car(draw: Draw) -> list[Mesh]:
    w, long, h, r = draw(0.6, 0.8), draw(1.4, 2.0), draw(0.25, 0.4), draw(0.15, 0.22)
    cabin, at = draw(0.4, 0.7), draw(-0.55, -0.35)
    parts = [box((0, r + h / 2, 0), (w, h, long))]
    parts += [box((0, r + h + 0.14, at), (w * 0.95, 0.28, cabin), 0.75, -draw(0.0, 0.1))]
    return parts + _wheels(w / 2, long * 0.32, r)


def truck(draw: Draw) -> list[Mesh]:
    w, long, r = draw(0.6, 0.8), draw(1.4, 2.2), draw(0.16, 0.24)
    cab = draw(0.5, 0.7)
    load = cab + draw(0.25, 0.6)
    parts = [box((0, r + 0.1, 0), (w, 0.12, long))]
    parts += [box((0, r + 0.15 + cab / 2, long / 2 - 0.25), (w, cab, 0.5), 0.85, -0.05)]
    parts += [box((0, r + 0.15 + load / 2, -0.3), (w, load, long - 0.75))]
    return parts + _wheels(w / 2, long * 0.33, r)


def boat(draw: Draw) -> list[Mesh]:
    w, long, h = draw(0.4, 0.7), draw(1.4, 2.0), draw(0.25, 0.4)
    hull = box((0, h / 2, 0), (w, h, long), 1.3)
    bow = hull.vertices[:, 2] > 0
    hull.vertices[bow, 0] *= 0.1
    hull.vertices[bow & (hull.vertices[:, 1] > h / 2), 2] += 0.25
    cabin = draw(0.2, 0.5)
    parts = [hull, box((0, h + cabin / 2, -long * 0.15), (w * 0.7, cabin, long * 0.35), 0.9)]
    return [*parts, rod((0, h, -0.1), (0, h + cabin + draw(0.2, 0.6), -0.1), 0.05)]


def dog(draw: Draw) -> list[Mesh]:
    long, r, h = draw(0.8, 1.2), draw(0.15, 0.25), draw(0.3, 0.6)
    parts = [ball((0, h + r, 0), (2 * r, 2 * r, long))]
    parts += _legs(r * 0.6, long * 0.32, h + r, 0.1)
    head = (0.0, h + r * 2 + draw(0.1, 0.3), long * 0.5)
    size = draw(0.25, 0.35)
    parts += [rod((0, h + r, long * 0.35), head, 0.1), ball(head, (size, size, size))]
    parts += [rod(head, (0, head[1] - 0.05, head[2] + 0.35), 0.1, 0.06)]
    return [*parts, rod((0, h + r, -long * 0.45), (0, h + r + 0.3, -long * 0.65), 0.05, 0.02)]


FAMILIES: Mapping[str, Callable[[Draw], list[Mesh]]] = {
    f.__name__: f
    for f in (
        *(chair, desk, mug, teapot, sofa, bed, lamp, stairs, house, tap, corner, camera),
        *(aeroplane, car, truck, boat, dog),
    )
}
"""Recipes by name."""

SHIFTED = ("aeroplane", "car", "truck", "boat", "dog")
"""Vehicles and animals; all others stand in and around a house."""
