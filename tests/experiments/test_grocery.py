import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trlearner.experiments.data.grocery import by_coarse_class
from trlearner.experiments.data.problem import MissingData, Request

COARSE = 43
HEADER = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic"
DATA = os.environ.get("TRLEARNER_DATA")
real = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "images" / "grocery").exists()),
    reason="needs the Grocery Store dataset: set TRLEARNER_DATA to a folder with images/grocery in it",
)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def write(data: Path, index: bool) -> Request:
    """Two sorts of each coarse class, one photograph in each of the authors' lists, its class in red."""
    root = data / "images" / "grocery"
    lists = {"train": [], "val": [], "test": []}
    for number in range(2 * COARSE):
        for part, lines in lists.items():
            path = f"{part}/Fruit/Sort{number}_001.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), (number, 0, 0), np.uint8)).save(root / path)
            lines.append(f"{path}, {number}, {number // 2}")
    rows = [f"Sort{i},{i},Coarse{i // 2},{i // 2},/x.jpg" for i in range(2 * COARSE)]
    (root / "classes.csv").write_text("\n".join([HEADER, *rows]))
    if index:
        lines = [line.replace(" ", "") for lines in lists.values() for line in lines]
        (root / "index.csv").write_text("\n".join(["path,class_id,coarse_class_id", *lines]))
    else:
        for part, lines in lists.items():
            (root / f"{part}.txt").write_text("\n".join(lines))
    return Request(1, 1, data_dir=data, options={"size": 4})


@pytest.mark.parametrize("index", [True, False])
def test_coarse_classes_stay_together(tmp_path, index):
    splits = by_coarse_class(write(tmp_path, index))
    groups = {name: {kind.group for kind in split.kinds} for name, split in splits.items()}
    assert {name: len(g) for name, g in groups.items()} == {
        "train": 26,
        "validation": 6,
        "test": 11,
    }
    assert len(set().union(*groups.values())) == COARSE
    for split in splits.values():
        for kind, start in zip(split.kinds, split.starts.tolist(), strict=True):
            number = int(kind.name.removeprefix("Sort"))
            assert kind.group == f"Coarse{number // 2}"
            assert kind.size == 3
            assert (split.images[start : start + 3, 0] == number).all()


def test_no_data():
    with pytest.raises(MissingData, match="github.com/marcusklasson/GroceryStoreDataset"):
        by_coarse_class(Request(1, 1))


@pytest.mark.full
@real
def test_the_real_ones():
    splits = by_coarse_class(Request(1, 1, data_dir=Path(DATA), options={"size": 16}))
    assert sum(map(len, splits.values())) == 81
    assert min(map(len, splits.values())) >= 10
    images = splits["train"].images
    assert images.shape == (1620, 3, 16, 16)
    assert images.dtype == torch.uint8
    red, _, blue = (images[:, i].float().mean() for i in range(3))
    assert red > blue + 20  # fruit
