import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trlearner.experiments.data import folder
from trlearner.experiments.data.folder import by_list
from trlearner.experiments.data.gallery import Gallery
from trlearner.experiments.data.problem import MissingData, Request

SPLITS = {"train": ("cat", "dog"), "val": ("owl",), "test": ("ant", "bee")}
COLORS = {"cat": 10, "dog": 60, "owl": 110, "ant": 160, "bee": 210}
SIDE, EACH = 20, 3


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def request(data: Path, **options) -> Request:
    return Request(1, 1, data_dir=data, options={"folder": "own", "size": SIDE, **options})


def picture(kind: str, i: int, path: Path) -> None:
    """An oblong picture of one color: the class in red, the number in green, blue is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((30, 40, 3), (COLORS[kind], 20 * i, 255), np.uint8)
    Image.fromarray(pixels).save(path)


def write_tables(root: Path, suffix: str = "png") -> None:
    for split, kinds in SPLITS.items():
        rows = [("filename", "label")]
        for kind in kinds:
            for i in range(EACH):
                picture(kind, i, root / "images" / f"{kind}{i}.{suffix}")
                rows.append((f"{kind}{i}.{suffix}", kind))
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def write_lists(root: Path) -> None:
    for split, kinds in SPLITS.items():
        for kind in kinds:
            for i in range(EACH):
                picture(kind, i, root / kind / f"{i}.png")
        (root / f"{split}.txt").write_text("\n".join(kinds) + "\n")


def write_subfolders(root: Path) -> None:
    for split, kinds in SPLITS.items():
        for kind in kinds:
            for i in range(EACH):
                picture(kind, i, root / split / kind / f"{i}.png")


@pytest.mark.parametrize("write", [write_tables, write_lists, write_subfolders])
def test_every_layout_gives_the_same(tmp_path, write):
    write(tmp_path / "own")
    (tmp_path / "own" / "README.txt").write_text("not a picture")
    splits = by_list(request(tmp_path))
    assert list(splits) == ["train", "validation", "test"]
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        check(splits[split], SPLITS[short])


def check(gallery: Gallery, kinds: tuple[str, ...]) -> None:
    assert sorted(kind.name for kind in gallery.kinds) == sorted(kinds)
    for kind, start in zip(gallery.kinds, gallery.starts.tolist(), strict=True):
        expected = torch.tensor([[COLORS[kind.name], 20 * i, 255] for i in range(EACH)]).byte()
        got = gallery.images[start : start + kind.size]
        assert got.shape == (EACH, 3, SIDE, SIDE)
        assert torch.equal(got, expected[:, :, None, None].expand_as(got))


def test_jpeg_and_gray(tmp_path):
    write_tables(tmp_path / "own", "jpg")
    colored = by_list(request(tmp_path))["train"].images
    assert colored[:3, 0].float().mean() == pytest.approx(COLORS["cat"], abs=3)
    assert by_list(request(tmp_path, channels=1))["train"].images.shape == (15, 1, SIDE, SIDE)
    with pytest.raises(ValueError, match="the option channels must be one of 1, 3, got 4"):
        by_list(request(tmp_path, channels=4))


def test_another_picture_or_size_is_read_anew(tmp_path):
    write_tables(tmp_path / "own")
    before = by_list(request(tmp_path))["train"].images
    assert by_list(request(tmp_path, size=8))["train"].images.shape[-1] == 8
    picture("bee", 9, tmp_path / "own" / "images" / "cat0.png")
    after = by_list(request(tmp_path))["train"].images
    assert not torch.equal(before, after)


def test_a_broken_picture_is_named(tmp_path):
    write_tables(tmp_path / "own")
    file = tmp_path / "own" / "images" / "owl1.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"images/owl1.png cannot be read as an image"):
        by_list(request(tmp_path))
    file.write_text("not a picture at all")
    with pytest.raises(ValueError, match=r"owl1.png cannot be read as an image .cannot identify"):
        by_list(request(tmp_path))


def test_a_small_file_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    write_tables(tmp_path / "own")
    monkeypatch.setattr(folder, "PIXELS", 10)
    with pytest.raises(
        ValueError, match=r"cannot be read as an image .it has \d+ pixels, more than 10"
    ):
        by_list(request(tmp_path))


def test_a_missing_picture_is_named(tmp_path):
    write_tables(tmp_path / "own")
    (tmp_path / "own" / "images" / "ant2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 15 listed pictures .* e.g. .*/images/ant2.png"):
        by_list(request(tmp_path))


def test_a_class_is_in_one_split_only(tmp_path):
    write_lists(tmp_path / "own")
    (tmp_path / "own" / "test.txt").write_text("ant\ndog\n")
    with pytest.raises(ValueError, match="class 'dog' is in the splits train and test"):
        by_list(request(tmp_path))


def test_what_is_wrong_with_a_layout(tmp_path):
    root = tmp_path / "own"
    write_lists(root)
    (root / "val.txt").write_text("yak\n")
    with pytest.raises(ValueError, match="class 'yak' is listed, but there is no folder"):
        by_list(request(tmp_path))
    (root / "yak").mkdir()
    with pytest.raises(ValueError, match=r"no picture in the split 'val', classes \['yak'\]"):
        by_list(request(tmp_path))
    (root / "val.txt").unlink()
    with pytest.raises(ValueError, match="has no val.csv .* no val.txt .* no folder val"):
        by_list(request(tmp_path))
    (root / "val.csv").write_text("name,kind\n")
    with pytest.raises(
        ValueError, match=r"columns \['filename', 'label'\], .* got \['name', 'kind'\]"
    ):
        by_list(request(tmp_path))


def test_which_folder(tmp_path):
    with pytest.raises(ValueError, match="pass the option folder"):
        by_list(Request(1, 1, data_dir=tmp_path))
    with pytest.raises(MissingData, match="The folder of pictures is not in .*/own"):
        by_list(request(tmp_path))
