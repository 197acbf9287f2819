"""Pictures against a slow ray caster, and against what must be seen of boxes."""

import math

import pytest
import torch
from trlearner.experiments.data.mesh import Mesh
from trlearner.experiments.data.render import AMBIENT, LIGHT, OVERSAMPLE, render
from trlearner.experiments.data.shapes import make
from trlearner.experiments.data.solids import box, joined

FRONT = torch.zeros(1)


def cast(mesh, azimuth, elevation, size, distance, margin):
    """The same picture by a ray for each pixel that is tried on each triangle, in float64."""
    points = mesh.vertices.double()
    x, y, z = points.unbind(1)
    x, z = (
        x * math.cos(azimuth) + z * math.sin(azimuth),
        z * math.cos(azimuth) - x * math.sin(azimuth),
    )
    y, z = (
        y * math.cos(elevation) - z * math.sin(elevation),
        z * math.cos(elevation) + y * math.sin(elevation),
    )
    points = torch.stack([x, y, z], 1)
    light = torch.tensor(LIGHT, dtype=torch.float64)
    light = light / light.norm()
    eye = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    half = 1 / (margin * math.sqrt(1 - 1 / distance**2))
    picture = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            u, v = (2 * column + 1 - size) / size, (size - 2 * row - 1) / size
            ray = torch.tensor([u * half, v * half, 0.0], dtype=torch.float64) - eye
            nearest = math.inf
            for triangle in mesh.triangles.tolist():
                a, b, c = points[triangle]
                system = torch.stack([b - a, c - a, -ray], 1)
                if abs(float(torch.linalg.det(system))) < 1e-12:
                    continue
                s, t, along = torch.linalg.solve(system, eye - a).tolist()
                if s < 0 or t < 0 or s + t > 1 or along >= nearest:
                    continue
                nearest = along
                normal = torch.linalg.cross(b - a, c - a)
                normal = normal / normal.norm()
                if float(normal @ (eye - (a + b + c) / 3)) < 0:
                    normal = -normal
                picture[row, column] = AMBIENT + (1 - AMBIENT) * max(0.0, float(normal @ light))
    return picture


@pytest.mark.full
def test_matches_the_ray_caster():
    mesh = joined([box((0, 0, 0), (0.9, 0.5, 0.7)), box((0.2, 0.3, 0.1), (0.3, 0.6, 1.1), 0.4)])
    mesh = mesh.normalized()
    found = render(
        mesh, torch.tensor([0.7]), torch.tensor([0.4]), 16 // OVERSAMPLE, margin=0.9, distance=3.0
    )
    fine = cast(mesh, 0.7, 0.4, 16, 3.0, 0.9)
    expected = torch.nn.functional.avg_pool2d(fine[None], OVERSAMPLE)
    assert float((expected > 0).float().mean()) > 0.15
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_a_box_from_the_front_has_its_extent():
    # 0.8 wide and 0.4 high; a parallel projection of margin 1 shows -1..1 on 40 pixels.
    seen = render(box((0, 0, 0), (0.8, 0.4, 0.2)), FRONT, FRONT, 40, math.inf, 1.0)[0] > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (16, 23)
    assert (int(columns[0]), int(columns[-1])) == (12, 27)
    assert int(seen.sum()) == 8 * 16


def test_perspective_makes_the_near_side_larger():
    mesh = box((0, 0, 0.4), (0.5, 0.5, 0.01))
    near = render(mesh, FRONT, FRONT, 64, 3.0)[0] > 0
    far = render(mesh, torch.tensor([math.pi]), FRONT, 64, 3.0)[0] > 0
    ratio = math.sqrt(int(near.sum()) / int(far.sum()))
    assert ratio == pytest.approx(3.4 / 2.6, rel=0.05)


@pytest.mark.parametrize("order", [1, -1])
def test_the_nearer_triangle_is_seen(order):
    # Two squares, one slanted and thus of another shade, in either order of the file.
    back = box((0, 0, -0.3), (0.8, 0.8, 0.01))
    front = box((0, 0, 0.3), (0.4, 0.4, 0.01), lean=0.3)
    alone = render(front, FRONT, FRONT, 32)[0]
    both = render(joined([back, front][::order]), FRONT, FRONT, 32)[0]
    inside = torch.nn.functional.avg_pool2d((alone > 0).float()[None], 3, 1, 1)[0] > 0.99
    assert int(inside.sum()) > 20
    torch.testing.assert_close(both[inside], alone[inside])
    assert int((both > 0).sum()) > int((alone > 0).sum())


def test_a_quarter_turn_of_the_mesh_is_a_quarter_turn_of_the_view():
    mesh, turns = make("desk", 0), torch.arange(4) * (math.pi / 2)
    quarter = mesh.turned([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    tilt = torch.full((4,), 0.3)
    seen, turned = render(mesh, turns, tilt, 48), render(quarter, turns, tilt, 48)
    torch.testing.assert_close(turned, seen.roll(-1, 0), atol=0.02, rtol=0)
    assert float((seen - seen.roll(1, 0)).abs().mean()) > 0.02


def test_where_things_are_seen():
    def middle(centre, azimuth=0.0, elevation=0.0):
        picture = render(
            box(centre, (0.2, 0.2, 0.2)), torch.tensor([azimuth]), torch.tensor([elevation]), 64
        )[0]
        rows, columns = (picture > 0).nonzero().float().mean(0).tolist()
        return columns - 31.5, 31.5 - rows  # to the right, up

    assert middle((0.5, 0, 0))[0] > 10
    assert middle((0, 0.5, 0))[1] > 10
    assert middle((0, 0, 0.5), azimuth=math.pi / 2)[0] > 10  # the front turns to the right
    assert middle((0, 0, 0.5), elevation=0.6)[1] < -5  # from above, what is near lies low


def test_shades_and_the_ways_of_a_triangle_do_not_matter():
    mesh = make("teapot", 1)
    angles = torch.linspace(0, 5, 4), torch.full((4,), 0.5)
    seen = render(mesh, *angles, 48)
    assert seen.shape == (4, 48, 48)
    assert float(seen.min()) == 0.0
    assert float(seen.max()) <= 1.0
    assert float(seen[seen > 0].median()) > AMBIENT
    flipped = Mesh(mesh.vertices, mesh.triangles.flip(1))
    torch.testing.assert_close(render(flipped, *angles, 48), seen, atol=1e-3, rtol=0)


def test_nothing_is_cut_off():
    for azimuth in torch.linspace(0, 6, 5):
        seen = render(make("aeroplane", 3), azimuth[None], torch.tensor([0.6]), 64)[0]
        edge = torch.cat([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
        assert float(edge.max()) == 0.0


def test_triangles_without_area_are_harmless():
    points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.9, 0, 0], [0, 0.5, 0.5]])
    mesh = Mesh(points, torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 3]]))
    seen = render(mesh, torch.tensor([0.0, 1.0]), torch.zeros(2), 32)
    assert bool(seen.isfinite().all())
    assert int((seen[0] > 0).sum()) > 20
