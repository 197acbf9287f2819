"""Which objects there are: those of recipes, those of a folder with and without an index."""

import pytest
from trlearner.experiments.data.objects import found, invented
from trlearner.experiments.data.shapes import make

ARROW = "v 0 0 0\nv 1 0 0\nv 0 0 3\nf 1 2 3\n"


def test_invented_objects_take_turns_among_families():
    things = invented(["mug", "car"], 5, seed=7)
    assert [(t.name, t.group) for t in things][:3] == [
        ("mug 7", "mug"),
        ("car 8", "car"),
        ("mug 9", "mug"),
    ]
    assert things[1].mesh().vertices.equal(make("car", 8).vertices)


@pytest.fixture
def folder(tmp_path):
    for name in ("a/one.obj", "a/two.obj", "b/three.obj", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ARROW)
    return tmp_path


def test_a_folder_without_an_index(folder):
    things = found(folder)
    assert {(t.name, t.group) for t in things} == {
        ("a/one.obj", "a"),
        ("a/two.obj", "a"),
        ("b/three.obj", "b"),
    }
    assert [t.name for t in things] == [t.name for t in found(folder)]


def test_the_index_lists_and_turns(folder):
    # The matrix takes x to z: row by row.
    (folder / "index.csv").write_text(
        "file,category,model_rotation\na/one.obj,Chairs,\nb/three.obj,Tables,0 1 0 0 0 1 1 0 0\n"
    )
    straight, turned = sorted(found(folder), key=lambda t: t.name)
    assert (straight.name, straight.group) == ("a/one.obj", "Chairs")
    assert (turned.name, turned.group) == ("b/three.obj", "Tables")
    a, b = straight.mesh().vertices, turned.mesh().vertices
    assert b[:, 2].equal(a[:, 0])
    assert b[:, 0].equal(a[:, 1])


def test_z_up_becomes_y_up(folder):
    y, z = (found(folder, up)[0].mesh().vertices for up in "yz")
    assert z[:, 1].equal(y[:, 2])
    assert z[:, 2].equal(-y[:, 1])


@pytest.mark.unchecked
def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"must hold meshes \(.off, .obj, .stl\), got none"):
        found(tmp_path)
    with pytest.raises(ValueError, match="up must be 'y' or 'z'.*got 'x'"):
        found(tmp_path, "x")
