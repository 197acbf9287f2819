import numpy as np
import pytest
from trlearner.experiments.data.cache import Draft, cached, fingerprint, folder, stamp
from trlearner.experiments.data.gallery import Kind

KINDS = [Kind("a", "", 2), Kind("b", "", 1)]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def counting(value: int = 7):
    """Makes a gallery, and remembers how often."""
    calls = []

    def make():
        calls.append(1)
        return Draft(
            KINDS, (1, 2, 2), (np.full((1, 1, 2, 2), value + i, np.uint8) for i in (0, 1, 2))
        )

    return make, calls


def test_made_once_and_read_alike():
    make, calls = counting()
    first, second = (cached("toy", {"seed": 0}, make) for _ in range(2))
    assert len(calls) == 1
    assert first.kinds == second.kinds == tuple(KINDS)
    assert first.images[:, 0, 0, 0].tolist() == second.images[:, 0, 0, 0].tolist() == [7, 8, 9]


def test_another_key_is_another_gallery():
    cached("toy", {"seed": 0}, counting(7)[0])
    assert cached("toy", {"seed": 1}, counting(50)[0]).images[0, 0, 0, 0] == 50


def test_what_fails_leaves_nothing():
    def blocks():
        yield np.zeros((1, 1, 2, 2), np.uint8)
        raise ValueError("a bad picture")

    with pytest.raises(ValueError, match="a bad picture"):
        cached("toy", {}, lambda: Draft(KINDS, (1, 2, 2), blocks()))
    assert list(folder().iterdir()) == []
    assert cached("toy", {}, counting()[0]).images[0, 0, 0, 0] == 7


def test_images_without_their_index_are_made_again():
    make, calls = counting()
    cached("toy", {}, make)
    next(folder().glob("*.json")).unlink()
    assert cached("toy", {}, make).images[2, 0, 0, 0] == 9
    assert len(calls) == 2


def test_writing_into_the_images_does_not_reach_the_file():
    make, _ = counting()
    cached("toy", {}, make).images.fill_(0)
    assert cached("toy", {}, make).images[0, 0, 0, 0] == 7


def test_no_folder_named_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("TRLEARNER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "trlearner"


def test_fingerprints_see_contents_and_stamps_see_names(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.write_text("x")
    assert fingerprint([one]) == fingerprint([two])
    assert stamp([one], tmp_path) != stamp([two], tmp_path)
    before = fingerprint([one]), stamp([one], tmp_path)
    one.write_text("xy")
    assert fingerprint([one]) != before[0]
    assert stamp([one], tmp_path) != before[1]
