"""Objects by recipe: many, different, and different from every side."""

import pytest
import torch
from trlearner.experiments.data import shapes
from trlearner.experiments.data.pose import DISTINCT
from trlearner.experiments.data.views import distinctness


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_every_family(family):
    mesh, same, other = (shapes.make(family, seed) for seed in (1, 1, 2))
    torch.testing.assert_close(mesh.vertices, same.vertices, rtol=0, atol=0)
    assert mesh.vertices.shape != other.vertices.shape or not torch.equal(
        mesh.vertices, other.vertices
    )
    assert float(mesh.vertices.norm(dim=1).max()) <= 1 + 1e-5
    assert int(mesh.triangles.min()) >= 0 and int(mesh.triangles.max()) < len(mesh.vertices)
    assert len(mesh.triangles) < 2000


@pytest.mark.full
@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_no_two_sides_look_alike(family):
    assert distinctness(shapes.make(family, 5)) > DISTINCT


def test_there_are_enough_families():
    assert len(shapes.FAMILIES) >= 12
    assert set(shapes.SHIFTED) < set(shapes.FAMILIES)
