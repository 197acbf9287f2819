import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trlearner.experiments.data import omniglot
from trlearner.experiments.data.problem import MissingData, Request

ALPHABETS = {
    "images_background": {f"Alpha{i}": 2 + i % 3 for i in range(6)},
    "images_evaluation": {"Omega": 3, "Psi": 2},
}
DATA = os.environ.get("TRLEARNER_DATA")
real = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "images" / "omniglot").exists()),
    reason="needs Omniglot: set TRLEARNER_DATA to a folder with images/omniglot in it",
)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def papers() -> dict[str, np.ndarray]:
    """A part's images ``[characters, drawings, 105, 105]``, true is paper, as in the published files."""
    rng = np.random.default_rng(0)
    return {
        part: np.kron(rng.random((sum(sizes.values()), 3, 7, 7)) < 0.8, np.ones((15, 15))) > 0
        for part, sizes in ALPHABETS.items()
    }


def write_packed(data: Path, table: bool = True) -> Request:
    folder = data / "images" / "omniglot"
    folder.mkdir(parents=True)
    rows, number = [("part", "alphabet", "first_id", "last_id", "n_characters")], 1
    for part, images in papers().items():
        labels = np.repeat(np.arange(len(images))[:, None], 3, 1)
        np.savez_compressed(folder / f"{part}.npz", images=images, labels=labels)
        for alphabet, size in ALPHABETS[part].items():
            rows.append((part, alphabet, number, number + size - 1, size))
            number += size
    if table:
        with (folder / "alphabets.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return Request(1, 1, data_dir=data)


def write_folders(data: Path) -> Request:
    for part, images in papers().items():
        row = iter(images)
        for alphabet, size in ALPHABETS[part].items():
            for character in range(1, size + 1):
                folder = data / f"images/omniglot/{part}/{alphabet}/character{character:02d}"
                folder.mkdir(parents=True)
                for i, paper in enumerate(next(row), 1):
                    Image.fromarray(paper).save(folder / f"0001_{i:02d}.png")
    return Request(1, 1, data_dir=data)


def test_ink_is_one_and_averaged(tmp_path):
    gallery = omniglot.characters(write_packed(tmp_path))
    assert gallery.images.shape == (23 * 3, 1, 28, 28)
    ink = torch.from_numpy(~papers()["images_background"]).float().flatten(0, 1)
    small = gallery.images[: len(ink), 0].float() / 255
    torch.testing.assert_close(small.mean((1, 2)), ink.mean((1, 2)), rtol=0, atol=0.02)
    # Squares of 15 x 15 pixels become 4 x 4: their middles are as they were.
    torch.testing.assert_close(small[:, 2::4, 2::4], ink[:, 7::15, 7::15], rtol=0, atol=0.02)


def test_packed_and_unpacked_are_the_same(tmp_path):
    packed = omniglot.by_alphabet(write_packed(tmp_path / "one"))
    unpacked = omniglot.by_alphabet(write_folders(tmp_path / "two"))
    assert packed["test"].kinds[0].name == "Omega/character01"
    assert packed["test"].kinds[0].group == "images_evaluation/Omega"
    for name, gallery in packed.items():
        assert gallery.kinds == unpacked[name].kinds
        assert torch.equal(gallery.images, unpacked[name].images)


def test_splits_by_alphabet(tmp_path):
    splits = omniglot.by_alphabet(write_packed(tmp_path))
    groups = {name: {kind.group for kind in split.kinds} for name, split in splits.items()}
    assert [len(groups[name]) for name in ("train", "validation", "test")] == [5, 1, 2]
    assert groups["test"] == {"images_evaluation/Omega", "images_evaluation/Psi"}
    assert not groups["train"] & groups["validation"]


def test_turns_can_be_switched_off(tmp_path):
    request = write_packed(tmp_path)
    assert omniglot.characters(request).turns == 4
    off = Request(1, 1, data_dir=tmp_path, options={"rotations": False})
    assert omniglot.characters(off).turns == 1


def test_changed_data_are_read_anew(tmp_path):
    request = write_folders(tmp_path)
    before = omniglot.characters(request).images.clone()
    file = next((tmp_path / "images/omniglot").rglob("*.png"))
    Image.fromarray(np.zeros((105, 105), bool)).save(file)
    assert not torch.equal(before, omniglot.characters(request).images)


def test_without_the_table_there_are_no_alphabets(tmp_path):
    request = write_packed(tmp_path, table=False)
    assert omniglot.characters(request).kinds[1].name == "images_background/0002"
    assert sum(map(len, omniglot.by_character(request).values())) == 23
    with pytest.raises(ValueError, match="does not say which character is of which alphabet"):
        omniglot.by_alphabet(request)


def test_no_data_and_wrong_data(tmp_path):
    with pytest.raises(MissingData, match="github.com/brendenlake/omniglot"):
        omniglot.by_character(Request(1, 1))
    (tmp_path / "images" / "omniglot" / "strokes").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"must hold images_background .* holds \['strokes'\]"):
        omniglot.by_character(Request(1, 1, data_dir=tmp_path))


def test_a_broken_file_is_named(tmp_path):
    request = write_folders(tmp_path)
    file = next((tmp_path / "images/omniglot").rglob("character02/0001_02.png"))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"character02/0001_02.png cannot be read as an image"):
        omniglot.characters(request)


@pytest.mark.full
@real
def test_the_real_ones():
    request = Request(1, 1, data_dir=Path(DATA))
    splits = omniglot.by_character(request)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1100,
        "validation": 100,
        "test": 423,
    }
    assert {kind.size for kind in splits["train"].kinds} == {20}
    alphabets = omniglot.by_alphabet(request)
    counts = {name: len({k.group for k in split.kinds}) for name, split in alphabets.items()}
    assert counts == {"train": 25, "validation": 5, "test": 20}
    assert len(alphabets["test"]) == 659
    ink = splits["train"].images.float().mean() / 255
    assert 0.03 < ink < 0.12  # thin white strokes on black
