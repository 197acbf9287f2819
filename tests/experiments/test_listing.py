"""Lists are read row by row; what is no list, or leads out of its folder, is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from trlearner.experiments.data.listing import inside, rows


def test_rows_have_their_lines_and_absent_cells_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffa,b\n1,"x\ny"\n2\n', "utf-8")
    assert list(rows(path, ("a",))) == [(3, {"a": "1", "b": "x\ny"}), (4, {"a": "2", "b": ""})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"a.csv:1: the header must name the columns \['a'\], \['a'\] missing"),
        (b"b\n", r"\['a'\] missing; got \['b'\]"),
        (b"a\n1\n\xff\n", "a.csv must be UTF-8, got the byte 0xff after line .*Save it as UTF-8"),
        (b"\xffa\n", "a.csv must be UTF-8, got the byte 0xff after line 0"),
        (b"a\n1\n" + b"x" * 200_000 + b"\n", "a.csv:3: this is no row of CSV: field larger than"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(rows(path, ("a",)))


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "\\\\host\\x", "..\\x", "..", "a\0b"]
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="which must lie in that folder. Take it off the list"):
        inside(tmp_path, name)


def test_names_in_the_folder_are_taken(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b..c.png") == tmp_path / "a" / "b..c.png"


def test_lists_of_pictures_and_meshes_lead_nowhere_else(tmp_path: Path) -> None:
    from trlearner.experiments.data.folder import by_list
    from trlearner.experiments.data.objects import found
    from trlearner.experiments.data.problem import Request

    request = Request(1, 1, data_dir=tmp_path, options={"folder": "own"})
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.csv").write_text("filename,label\n../../x.png,a\n")
    with pytest.raises(ValueError, match="images lists the file '../../x.png'"):
        by_list(request)
    (tmp_path / "own" / "train.csv").rename(tmp_path / "own" / "unused")
    (tmp_path / "own" / "train.txt").write_text("/etc\n")
    with pytest.raises(ValueError, match="own lists the file '/etc'"):
        by_list(request)
    index = tmp_path / "index.csv"
    index.write_text("file,category\n../a.obj,x\n")
    with pytest.raises(ValueError, match="lists the file '../a.obj'"):
        found(tmp_path)
    index.write_text("file,category,model_rotation\na.obj,x,1 2 nan\n")
    with pytest.raises(ValueError, match="index.csv:2: model_rotation must be 9 finite numbers"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((1, 2, 3), bool)}, r"it holds bool \[1, 2, 3\]"),
        ({"images": np.zeros((1, 2, 3, 3))}, "it holds float64"),
        ({"images": np.array([None])}, "allow_pickle=False"),
        ({"others": np.zeros(1)}, "images is not a file in the archive"),
        ({"images": np.zeros((1, 2, 3, 3), bool), "bomb": np.zeros(2**21)}, "unpacks to more than"),
    ],
)
def test_an_archive_is_checked_before_it_is_unpacked(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trlearner.experiments.data import omniglot

    monkeypatch.setattr(omniglot, "UNPACKED", 2**20)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"a.npz must hold the array images.*{said}"):
        omniglot._images(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match="a.npz must hold the array images"):
        omniglot._images(tmp_path / "a.npz")
