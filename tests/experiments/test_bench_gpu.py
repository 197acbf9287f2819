"""The report of a GPU, tried on the CPU: rows are kept as they come; what fails or is left out is named."""

import json

import pytest
import torch
from trlearner.experiments.bench import agreement, gpu, timing

QUICK = ("MAML on curves, batched", "relation_matrix", "sinusoid-4, batched + TRLearner")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here.")


@pytest.fixture
def report(tmp_path, monkeypatch):
    """`report(*arguments)` runs the script on the CPU: its exit status, the JSON and the tables."""
    monkeypatch.setattr(timing, "TURN", 0.0)

    def run(*arguments):
        status = gpu.main(["--device", "cpu", "--out", str(tmp_path), "--rounds", "3", *arguments])
        found = json.loads((tmp_path / "gpu.json").read_text())
        return status, found, (tmp_path / "gpu.md").read_text()

    return run


@pytest.mark.full
def test_a_row_of_each_part(report):
    status, found, table = report("--rows", *QUICK)
    assert status == 0 and found["left_out"] == {}
    parts = {part: list(found[part]) for part in ("engines", "relations", "bench")}
    assert parts == dict(zip(parts, ([name] for name in QUICK), strict=True))
    for part in ("engines", "relations"):
        (row,) = found[part].values()
        assert row == {"allowed": 1e-9, "error": row["error"], "ok": True, "waits": None}
        assert row["error"] <= 1e-9
    timed = found["bench"][QUICK[2]]
    assert timed["turns"] == 3 and timed["median_ms"] > 0 and timed["error"] < 1e-4
    assert found["machine"]["versions"]["torch"] and found["machine"]["device"] == "cpu"
    assert all(f"| {name} |" in table for name in QUICK)


@pytest.mark.full
def test_without_time_rows_are_left_out_by_name(report):
    status, found, table = report("--rows", *QUICK, "--minutes", "0")
    assert status == 0
    assert found["left_out"] == dict.fromkeys(QUICK, "no time was left")
    assert all(f"Left out: {name}: no time was left" in table for name in QUICK)


@pytest.mark.full
def test_a_row_that_fails_is_told_and_the_others_go_on(report, monkeypatch, capsys):
    def fails():
        raise RuntimeError("CUDA error: out of memory")

    def rows(device, rounds):
        yield "relations", "broken", fails
        yield "relations", "wrong", lambda: agreement.row(1e-3, 1e-9, None, strict=True)
        yield "engines", "missing", lambda: __import__("a_package_that_is_not_there")
        yield "relations", "right", lambda: agreement.row(0.0, 1e-9, 0, strict=True)

    monkeypatch.setattr(gpu, "rows", rows)
    status, found, table = report()
    assert status == 1
    assert {name: row["ok"] for name, row in found["relations"].items()} == {
        "broken": False,
        "wrong": False,
        "right": True,
    }
    assert "CUDA error: out of memory |" in table and "**wrong** |" in table
    assert list(found["left_out"]) == ["missing"]
    assert "2 rows failed: broken; wrong" in capsys.readouterr().out


def test_all_rows_have_a_name_of_their_own():
    names = [(part, name) for part, name, _ in gpu.rows(torch.device("cpu"), 3)]
    assert len(set(names)) == len(names) > 70


def test_a_row_that_waits_where_it_must_not_has_failed():
    assert agreement.row(0.0, 1e-9, 0, strict=True)["ok"]
    assert not agreement.row(0.0, 1e-9, 2, strict=True)["ok"]
    assert agreement.row(0.0, 1e-9, 2, strict=False)["ok"]
    assert not agreement.row(float("nan"), 1e-9, None, strict=False)["ok"]


def test_a_difference_is_seen_wherever_it_is():
    expected = {"a": torch.ones(2), "b": torch.ones(3)}
    nothing = agreement.worst(expected, expected)
    assert nothing == 0.0
    for value in (1.5, float("nan")):
        found = {**expected, "b": torch.tensor([1.0, value, 1.0])}
        assert not agreement.worst(found, expected) < 0.2


@needs_no_gpu
def test_without_a_gpu_the_script_says_so(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--out", str(tmp_path)])
    told = capsys.readouterr().err
    assert "--device cuda needs a CUDA device" in told and "--device cpu" in told
    assert list(tmp_path.iterdir()) == []
