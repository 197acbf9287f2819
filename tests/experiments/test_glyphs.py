import unicodedata

import pytest
import torch
from trlearner.experiments.data import glyphs
from trlearner.experiments.data.gallery import Gallery
from trlearner.experiments.data.problem import Request

pytestmark = pytest.mark.full  # thousands of characters are drawn
DRAWINGS = 4


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> dict[str, Gallery]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRLEARNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        return glyphs.by_character(Request(1, 1, options={"drawings": DRAWINGS}))


@pytest.fixture
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def names(gallery: Gallery) -> set[str]:
    return {kind.name for kind in gallery.kinds}


def test_enough_characters_of_many_scripts(splits):
    assert len(splits["train"]) > 500
    assert len(splits["validation"]) > 100
    assert len(splits["test"]) > 150
    assert len(splits["shifted"]) >= 20
    groups = {kind.group for kind in splits["train"].kinds}
    assert groups >= {"latin", "greek", "cyrillic", "arabic", "hebrew", "georgian", "canadian"}


def test_splits_differ_in_their_characters(splits):
    three = [names(splits[name]) for name in ("train", "validation", "test")]
    assert len(set().union(*three)) == sum(map(len, three))
    assert names(splits["shifted"]) < names(splits["test"])


def test_shifted_characters_look_different(splits):
    drawings = {}
    for split in ("test", "shifted"):
        gallery = splits[split]
        starts = dict(zip((k.name for k in gallery.kinds), gallery.starts.tolist(), strict=True))
        drawings[split] = gallery.images[
            [starts[name] for name in sorted(names(splits["shifted"]))]
        ]
    assert not (drawings["test"] == drawings["shifted"]).flatten(1).all(1).any()


def test_drawings_are_legible_and_whole(splits):
    images = splits["train"].images[:, 0].float() / 255
    assert images.shape[1:] == (28, 28)
    assert (images.amax((1, 2)) > 0.4).all()
    ink = images.mean((1, 2))
    assert 0.05 < ink.mean() < 0.15
    assert ink.max() < 0.5
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert (border.amax(1) > 0.3).float().mean() < 0.01


def test_drawings_of_a_character_are_alike_but_not_the_same(splits):
    images = splits["train"].images.float()
    classes = torch.nn.functional.avg_pool2d(images, 2).flatten(1).unflatten(0, (-1, DRAWINGS))
    classes = torch.nn.functional.normalize(classes, dim=-1)
    within = (classes @ classes.mT)[:, 0, 1:]
    between = classes[:, 0] @ classes[:, 0].T
    assert within.max() < 1 - 1e-4
    assert within.mean() > between.mean() + 0.05


@pytest.mark.usefixtures("_cache")
def test_the_same_every_time(monkeypatch, tmp_path):
    one = glyphs.glyphs(DRAWINGS, only="aж")
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "another"))
    two = glyphs.glyphs(DRAWINGS, only="aж")
    assert one.kinds == two.kinds
    assert torch.equal(one.images, two.images)
    assert [kind.group for kind in one.kinds] == ["latin", "cyrillic", "shifted", "shifted"]


def test_no_two_look_the_same():
    chars = glyphs.characters()
    assert len(set(chars)) == len(chars)
    for twins in ("AΑА", "oοо", "cс", "sS", "l|I"):  # Latin, Greek, Cyrillic; small and large
        assert len(set(twins) & set(chars)) <= 1
    assert not [char for char in chars if unicodedata.decomposition(char)]


def test_every_font_is_there_and_has_what_is_drawn():
    for font in (*glyphs.SEEN, *glyphs.UNSEEN):
        assert ord("a") in glyphs._points(font)
    assert not any("LastResort" in font for font in (*glyphs.SEEN, *glyphs.UNSEEN))


def test_prints_are_centered():
    canvas, (width, height) = glyphs._print("g", "DejaVuSerif", 0)
    rows, columns = (canvas.any(axis).nonzero()[0] for axis in (1, 0))
    assert columns[-1] - columns[0] + 1 == width
    assert rows[-1] - rows[0] + 1 == height
    for line in (rows, columns):
        assert abs((line[0] + line[-1] + 1) / 2 - glyphs.CANVAS / 2) <= 1


def test_pens_widen_and_narrow():
    thin, plain, thick = (glyphs._print("B", "DejaVuSans", pen)[0].sum() for pen in (-1, 0, 2))
    assert thin < 0.9 * plain
    assert thick > 1.3 * plain
