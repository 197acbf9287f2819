"""Meshes out of files in each format, and what is said of broken ones."""

import struct

import pytest
import torch
from trlearner.experiments.data.mesh import Mesh, load

SQUARE = [[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]]
OBJ = """# a square, as a fan
mtllib square.mtl
v 0 0 0
v 2 0 0 1.0   # with a weight
v 2 1 0
v 0 1 0
vt 0 0
vn 0 0 1
s off
f {} {} {} {}
"""
OFF = "{}\n# a comment\n0 0 0\n2 0 0\n\n2 1 0\n0 1 0\n4 0 1 2 3 255 0 0\n"
STL = """solid square
 facet normal 0 0 1
  outer loop
   vertex 0 0 0
   vertex 2 0 0
   vertex 2 1e0 0
  endloop
 endfacet
 facet normal 0 0 1
  outer loop
   vertex 0 0 0
   vertex 2 1 0
   vertex 0 1 0
  endloop
 endfacet
endsolid
"""


def corners(mesh):
    """The triangles as sorted lists of points, however vertices are numbered."""
    return sorted(sorted(map(tuple, t)) for t in mesh.vertices[mesh.triangles].tolist())


EXPECTED = corners(Mesh(torch.tensor(SQUARE).float(), torch.tensor([[0, 1, 2], [0, 2, 3]])))


@pytest.mark.parametrize(
    "face",
    [
        ("1", "2", "3", "4"),
        ("1/1", "2/1", "3/1", "4/1"),
        ("1/1/1", "2/1/1", "3/1/1", "4/1/1"),
        ("1//1", "2//1", "3//1", "4//1"),
        ("-4", "-3", "-2", "-1"),
    ],
)
def test_obj(tmp_path, face):
    path = tmp_path / "square.OBJ"
    path.write_text(OBJ.format(*face))
    assert corners(load(path)) == EXPECTED


@pytest.mark.parametrize("head", ["OFF\n4 1 4", "OFF 4 1 4", "OFF\n\n4 1 0 # counts", "COFF 4 1 0"])
def test_off(tmp_path, head):
    path = tmp_path / "square.off"
    path.write_text(OFF.format(head))
    assert corners(load(path)) == EXPECTED


def test_ascii_stl(tmp_path):
    path = tmp_path / "square.stl"
    path.write_text(STL)
    assert corners(load(path)) == EXPECTED


def test_binary_stl(tmp_path):
    path = tmp_path / "square.stl"
    data = b"solid, although it is binary".ljust(80) + struct.pack("<I", 2)
    for triangle in ((0, 1, 2), (0, 2, 3)):
        numbers = [0.0, 0.0, 1.0] + [float(x) for i in triangle for x in SQUARE[i]]
        data += struct.pack("<12fH", *numbers, 0)
    path.write_bytes(data)
    assert corners(load(path)) == EXPECTED


def test_polygons_become_fans(tmp_path):
    path = tmp_path / "pentagon.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 2 1 0\nv 1 2 0\nv 0 2 0\nf 1 2 3 4 5\nf 1 2\nl 1 2\n")
    assert load(path).triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]]


def test_normalized_meshes_fill_the_unit_sphere():
    mesh = Mesh(
        torch.tensor([[1.0, 2, 3], [5, 2, 3], [5, 8, 3], [99, 99, 99]]), torch.tensor([[0, 1, 2]])
    )
    found = mesh.normalized().vertices[:3]  # the fourth belongs to no triangle, and must not count
    torch.testing.assert_close(found.amin(0), -found.amax(0))
    assert float(found.norm(dim=1).max()) == pytest.approx(1.0)


def test_turned():
    mesh = Mesh(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0, 0, 0]]))
    up = mesh.turned([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert up.vertices.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.obj", "v 1 2\n", "a.obj, line 1: expected 3 numbers, got '1 2'"),
        ("a.obj", "v 1 2 x\n", "a.obj, line 1: expected 3 numbers, got '1 2 x'"),
        ("a.obj", "v 0 0 0\n\nf 1 1 2\n", "line 3: expected vertices among the 1 above"),
        ("a.obj", "v 0 0 0\nf 1 1 -2\n", "line 2: expected vertices among the 1 above"),
        ("a.obj", "v 0 0 0\nf 1 1 0\n", "line 2: expected vertices among the 1 above"),
        ("a.obj", "v 0 0 0\nf 1 a 1\n", "line 2: expected a whole number, got 'a'"),
        ("a.obj", "v 0 0 0\n", "expected at least one face, got none"),
        ("a.off", "PLY\n", "a.off, line 1: expected the word OFF, then text, got 'PLY'"),
        ("a.off", "OFF BINARY\n", "line 1: expected the word OFF, then text"),
        ("a.off", "OFF 3\n", "line 1: expected counts of vertices and faces, got 'OFF 3'"),
        ("a.off", "OFF\n2 1 0\n0 0 0\n", "expected vertex 2 of 2, got the end of the file"),
        ("a.off", "OFF 1 1 0\n0 0 0\n3 0 0\n", "line 3: expected a count and so many vertices"),
        ("a.off", "OFF 1 1 0\n0 0 0\n3 0 0 7\n", "so many vertices of 0..0, got '3 0 0 7'"),
        ("a.stl", "solid\nvertex 0 0 0\n", "line 2: expected 3 vertices a facet, got '1 in all'"),
        ("a.stl", "nothing of the kind", "expected an STL file"),
        ("a.obj", "v 0 0 0\nv 0 nan 0\nf 1 2 1\n", "a.obj: vertex 2 must be three finite numbers"),
        ("a.obj", "v 0 0 0\nv 0 1e30 0\nf 1 2 1\n", "a.obj: vertex 2 must be three finite"),
        ("a.off", "OFF 1 1 0\n0 inf 0\n3 0 0 0\n", "a.off: vertex 1 must be three finite numbers"),
        ("a.stl", "solid\n" + 3 * "vertex 0 0 nan\n", "a.stl: vertex 1 must be three finite"),
        ("a.ply", "ply\n", "expected one of .off, .obj, .stl, got '.ply'"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / name)


@pytest.mark.unchecked
def test_a_binary_stl_that_is_cut_short(tmp_path):
    path = tmp_path / "a.stl"
    path.write_bytes(b"\0" * 80 + struct.pack("<I", 2) + b"\0" * 60)
    with pytest.raises(ValueError, match="got 144 bytes for 2 triangles. It may be cut short"):
        load(path)
