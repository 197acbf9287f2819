import numpy as np
import pytest
from trlearner.experiments.data.arrays import stored


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Make:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": np.arange(5), "b": np.zeros((2, 3), np.uint8)}


def test_made_once_and_read_afterwards(folder):
    make = Make()
    first, second = stored("x", [1, "a"], make), stored("x", [1, "a"], make)
    assert make.calls == 1
    for name in ("a", "b"):
        assert second[name].dtype == first[name].dtype
        np.testing.assert_array_equal(first[name], second[name])
    assert [path.suffix for path in folder.iterdir()] == [".npz"]  # no leftovers


def test_whatever_it_depends_on_makes_another_file(folder):
    make = Make()
    for depends_on in ([1, "a"], [1, "b"], [2, "a"], [1, "a", 0]):
        stored("x", depends_on, make)
    assert make.calls == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_broken_file_is_replaced(folder, content):
    make = Make()
    stored("x", 0, make)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    np.testing.assert_array_equal(stored("x", 0, make)["a"], np.arange(5))
    stored("x", 0, make)
    assert make.calls == 2


def test_what_fails_leaves_nothing_behind(folder):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        stored("x", 0, fail)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_time_only(folder, monkeypatch):
    folder.write_text("a file, where the folder should be")
    with pytest.warns(UserWarning, match="can't be written.*Set TRLEARNER_CACHE"):
        made = stored("x", 0, Make())
    np.testing.assert_array_equal(made["a"], np.arange(5))
