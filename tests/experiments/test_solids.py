"""The parts that shapes are made of: where they are, and that their skin is closed."""

import pytest
import torch
from trlearner.experiments.data.solids import arc, ball, box, joined, rod

SOLIDS = {
    "box": box((1, 2, 3), (2, 4, 6)),
    "rod": rod((0, 0, 0), (1, 2, 2), 0.5),
    "cone": rod((0, 0, 0), (0, 3, 0), 0.5, 0.1),
    "ball": ball((1, 0, 0), (2, 4, 2)),
}


def volume(mesh):
    """The sum over triangles of signed pyramids to the origin, in whichever direction they turn."""
    a, b, c = mesh.vertices.double()[mesh.triangles].unbind(1)
    return abs(float((a * torch.linalg.cross(b, c)).sum())) / 6


@pytest.mark.parametrize("name", ["rod", "cone", "ball"])
def test_skins_are_closed(name):
    # Every edge is run through once in each direction, but at the pinched ends.
    mesh = SOLIDS[name]
    inner = mesh.triangles
    edges = torch.cat([inner[:, [i, (i + 1) % 3]] for i in range(3)]).tolist()
    found = {tuple(edge) for edge in edges}
    assert len(found) == len(edges)
    rim = [edge for edge in found if edge[::-1] not in found]
    lengths = [float((mesh.vertices[a] - mesh.vertices[b]).norm()) for a, b in rim]
    assert max(lengths) < 1e-5


def test_box():
    assert SOLIDS["box"].vertices.amin(0).tolist() == [0.0, 0.0, 0.0]
    assert SOLIDS["box"].vertices.amax(0).tolist() == [2.0, 4.0, 6.0]
    leaning = box((0, 0, 0), (2, 2, 2), taper=0.5, lean=1.0).vertices
    assert leaning[leaning[:, 1] > 0].amax(0).tolist() == [0.5, 1.0, 1.5]
    assert leaning[leaning[:, 1] < 0].amax(0).tolist() == [1.0, -1.0, 1.0]


def test_round_solids_have_about_their_volume():
    pi = torch.pi
    assert volume(SOLIDS["rod"]) == pytest.approx(pi * 0.25 * 3, rel=0.05)
    assert volume(SOLIDS["cone"]) == pytest.approx(pi * (0.25 + 0.05 + 0.01), rel=0.05)
    assert volume(SOLIDS["ball"]) == pytest.approx(4 / 3 * pi * 2, rel=0.1)


def test_arcs_bulge_to_the_right():
    points = arc((0, 5, 0), 0.3, 0.8, 0.05).vertices
    assert float(points[:, 0].max()) == pytest.approx(0.35, abs=0.03)
    assert float(points[:, 0].min()) > -0.1
    assert float(points[:, 1].mean()) == pytest.approx(5, abs=0.01)


def test_joined_meshes_keep_their_triangles():
    a, b = box((0, 0, 0), (1, 1, 1)), box((5, 0, 0), (1, 1, 1))
    both = joined([a, b])
    torch.testing.assert_close(both.vertices[both.triangles][12:], b.vertices[b.triangles])
    torch.testing.assert_close(both.vertices[both.triangles][:12], a.vertices[a.triangles])
