"""Files that are whole or not there, and execute nothing."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from trlearner.experiments.data import files
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import checkpoint

CONFIG = Config("regression/sinusoid")


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path, CONFIG, "cpu") is None
    checkpoint.save(path, {"config": CONFIG.record(), "step": 3, "weights": {"w": torch.arange(3)}})
    state = checkpoint.load(path, CONFIG, "cpu")
    assert state is not None and state["step"] == 3 and state["weights"]["w"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(RuntimeError):
        files.write(path, _fails)
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def _fails(file: object) -> None:
    raise RuntimeError("disk full")


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": [float("nan"), float("inf"), 1.5, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, None, 1.5, 2]}
    files.write_lines(tmp_path / "b.jsonl", [{"b": 1, "a": float("-inf")}, 3])
    assert (tmp_path / "b.jsonl").read_text() == '{"a": null, "b": 1}\n3\n'


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"config": CONFIG.record()})
    other = Config("regression/sinusoid", lam=0.5, seed=1)
    with pytest.raises(
        ValueError, match=r"belongs to a run with other settings \(lam, seed\)\. Use"
    ):
        checkpoint.load(path, other, "cpu")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize("content", ["evil", "damaged", "foreign"])
def test_a_file_that_is_no_checkpoint_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if content == "evil":
        torch.save({"config": Evil()}, path)
    elif content == "foreign":
        path.write_bytes(pickle.dumps([1, 2]))
    else:
        checkpoint.save(path, {"config": CONFIG.record()})
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged, or no checkpoint of ours. Remove it"):
        checkpoint.load(path, CONFIG, "cpu")
    assert not (tmp_path / "evil-was-here").exists()


def test_a_compressed_file_is_the_same_to_the_last_byte(tmp_path: Path) -> None:
    one, other = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    for path in (one, other):
        files.write_json(path, {"tasks": [0.5] * 1000})
    assert files.read_json(one) == {"tasks": [0.5] * 1000}
    assert one.read_bytes() == other.read_bytes() and one.stat().st_size < 200
    one.write_bytes(other.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.json\.gz must be JSON, but cannot be read"):
        files.read_json(one)
