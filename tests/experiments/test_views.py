"""Galleries of views: at the angles that they say, kept, and never half-made."""

import math

import pytest
import torch
from trlearner.experiments.data import render, views
from trlearner.experiments.data.objects import Thing, invented
from trlearner.experiments.data.solids import box, rod


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path))
    return tmp_path


def test_angles_follow_from_the_name_and_cover_the_circle():
    azimuth, elevation = views.angles("mug 1", 400)
    assert azimuth.equal(views.angles("mug 1", 400)[0])
    assert azimuth[:30].equal(views.angles("mug 1", 30)[0])
    assert not azimuth.equal(views.angles("mug 2", 400)[0])
    low, high = views.ELEVATION
    assert low <= float(elevation.min()) and float(elevation.max()) <= high
    counts = torch.histc(azimuth, 8, 0, 2 * math.pi)
    assert int(counts.sum()) == 400 and int(counts.min()) > 25


def test_a_gallery_holds_what_render_shows(capsys):
    things = invented(["car", "mug"], 2, seed=0)
    found = views.gallery("test", things, None, views=3, size=32)
    assert found.images.shape == (6, 1, 32, 32)
    assert [(k.name, k.group, k.size) for k in found.kinds] == [
        ("car 0", "car", 3),
        ("mug 1", "mug", 3),
    ]
    expected = render.render(things[1].mesh(), *views.angles("mug 1", 3), 32)
    torch.testing.assert_close(found.images[3:, 0] / 255, expected, atol=0.003, rtol=0)
    assert "Rendering: 2/2 objects, 0 s left" in capsys.readouterr().err


def test_a_gallery_is_made_once(capsys):
    def make():
        made.append(1)
        return box((0, 0, 0), (1, 1, 1))

    made = []
    things = [Thing("cube", "", make)]
    first = views.gallery("test", things, "contents", 2, 16)
    assert views.gallery("test", things, "contents", 2, 16).images.equal(first.images)
    assert len(made) == 1
    for other in (("other", 2, 16), ("contents", 3, 16), ("contents", 2, 32)):
        views.gallery("test", things, *other)
    assert len(made) == 4


def test_an_interrupted_gallery_leaves_nothing(cache):
    def stop():
        raise KeyboardInterrupt

    things = [*invented(["mug"], 1, 0), Thing("never", "", stop)]
    with pytest.raises(KeyboardInterrupt):
        views.gallery("test", things, None, 2, 16)
    assert list(cache.iterdir()) == []


def test_distinctness():
    assert views.distinctness(rod((0, -0.5, 0), (0, 0.5, 0), 0.4)) < 0.1
    assert views.distinctness(box((0, 0, 0), (0.5, 0.5, 0.5))) < 0.05
    chair = invented(["chair"], 1, 0)[0]
    assert views.distinctness(chair.mesh()) > 0.3
    column = Thing("column", "", lambda: rod((0, -0.5, 0), (0, 0.5, 0), 0.4))
    assert views.distinct("test", [column, chair], None, 0.2) == [chair]
