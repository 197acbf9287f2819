import pytest
import torch
from trlearner.experiments.data.gallery import Gallery, Kind

SIZES = {"a": 2, "b": 3, "c": 1, "d": 4}


def make() -> Gallery:
    kinds = [Kind(name, "vowel" if name == "a" else "consonant", n) for name, n in SIZES.items()]
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 4, 4)
    return Gallery.of(images, kinds)


def values(gallery: Gallery) -> dict[str, list[int]]:
    """What stands in each class's images."""
    return {
        kind.name: gallery.images[start : start + kind.size, 0, 0, 0].tolist()
        for kind, start in zip(gallery.kinds, gallery.starts.tolist(), strict=True)
    }


def test_classes_lie_one_after_the_other():
    gallery = make()
    assert values(gallery) == {"a": [0, 1], "b": [2, 3, 4], "c": [5], "d": [6, 7, 8, 9]}
    assert gallery.counts.tolist() == [2, 3, 1, 4]


def test_some_classes_keep_their_images():
    gallery = make()
    assert values(gallery[[3, 1]]) == {"d": [6, 7, 8, 9], "b": [2, 3, 4]}
    assert gallery[[3, 1]].images is gallery.images
    assert values(gallery.where(lambda kind: kind.group == "vowel")) == {"a": [0, 1]}


def test_the_first_images_of_each_class():
    assert values(make().first(2)) == {"a": [0, 1], "b": [2, 3], "c": [5], "d": [6, 7]}


@pytest.mark.unchecked
def test_an_array_that_does_not_fit():
    kinds = [Kind("a", "", 2)]
    with pytest.raises(ValueError, match=r"with 2 images, .* got torch.uint8 \[3, 1, 4, 4\]"):
        Gallery.of(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), kinds)
    with pytest.raises(ValueError, match="got torch.float32"):
        Gallery.of(torch.zeros(2, 1, 4, 4), kinds)


def test_only_squares_turn():
    assert make().turned().turns == 4
    oblong = Gallery.of(torch.zeros(1, 1, 4, 5, dtype=torch.uint8), [Kind("a", "", 1)])
    with pytest.raises(ValueError, match=r"only square images can turn, got \[4, 5\]"):
        oblong.turned()


def many(names: list[str]) -> Gallery:
    kinds = [Kind(name, name[0], 1) for name in names]
    return Gallery.of(torch.zeros(len(names), 1, 1, 1, dtype=torch.uint8), kinds)


NAMES = [f"{letter}{i}" for letter in "abcdefghij" for i in range(10)]
SHARES = {"train": 6, "validation": 1, "test": 3}


@pytest.mark.parametrize(("by", "sizes"), [("name", [60, 10, 30]), ("group", [60, 10, 30])])
def test_splits_are_disjoint_and_complete(by, sizes):
    splits = many(NAMES).split(by, SHARES)
    assert [len(splits[name]) for name in SHARES] == sizes
    names = [{getattr(kind, by) for kind in split.kinds} for split in splits.values()]
    assert sum(map(len, names)) == len(set().union(*names))


def test_splits_follow_from_names_alone():
    here, reversed_ = many(NAMES).split("name", SHARES), many(NAMES[::-1]).split("name", SHARES)
    for name in SHARES:
        assert {k.name for k in here[name].kinds} == {k.name for k in reversed_[name].kinds}
    assert [kind.name for kind in here["train"].kinds] != NAMES[:60]
