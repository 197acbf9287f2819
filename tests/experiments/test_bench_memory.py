"""The memory of a meta-step: how it is measured, and what bounds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trlearner.experiments.bench import memory

LIMIT = 24.0


@pytest.mark.full
@pytest.mark.parametrize(
    "case",
    [
        {"tasks": 64},
        {"tasks": 64, **memory.NEAREST},
        {**memory.CONV, "steps": 1, "recompute": True},
    ],
)
def test_a_step_is_measured(case: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--step", json.dumps({**memory.BASE, **case})])
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] >= 0 and found["seconds"] > 0


def rows() -> list[dict[str, Any]]:
    return [
        {**case, "bytes": 2**20 * case["tasks"], "seconds": 0.5}
        for i, case in enumerate(memory.CASES)
        if case not in memory.CASES[:i]
    ]


def test_what_did_not_fit_is_in_the_table_and_not_in_the_plot(tmp_path: Path) -> None:
    found = rows()
    found[4] = {**memory.CASES[4], "bytes": None, "seconds": None}
    lines = memory.table(found, LIMIT).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| 1-40-40-1 | 16 | 5 | – | – | 1.0 | – | – | 16 | 0.50 |"
    assert lines[6] == "| 1-40-40-1 | 4096 | 5 | – | – | 1.0 | – | – | over 24 GiB | – |"
    assert "| 1-40-40-1 | 4096 | 5 | 1 | 4 | 0.3 | – | – | 4,096 | 0.50 |" in lines
    assert "| Conv-4 | 8 | 20 | 1 | – | 1.0 | yes | – | 8 | 0.50 |" in lines
    memory.plot(found, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_what_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what did not fit in another limit is; and what is no case is gone."""
    old = {**memory.BASE, "tasks": 256, "bytes": 1, "seconds": 1.0}
    big = {**old, "tasks": 4096, "bytes": None, "seconds": None}
    gone = {**old, "tasks": 17}
    given = [row for row in rows() if row["tasks"] not in (256, 4096)]
    out, measured = tmp_path / "memory.json", list[dict[str, Any]]()
    out.write_text(json.dumps({"limit_gib": 12.0, "rows": [old, big, gone, *given]}))

    def fake(case: dict[str, Any], limit: float) -> dict[str, Any]:
        measured.append(case)
        return {**case, "bytes": 2, "seconds": 2.0}

    monkeypatch.setattr(memory, "measured", fake)
    memory.main(["--out", str(out), "--limit", "24"])
    assert {(c["tasks"], c["chunk"]) for c in measured} == {
        *((256, chunk) for chunk in (64, 8, 1)),
        *((4096, chunk) for chunk in (0, 8, 1)),
    }
    found = json.loads(out.read_text())["rows"]
    assert old in found and big not in found and gone not in found
    assert len(found) == len(rows())
    measured.clear()
    memory.main(["--out", str(out), "--limit", "24"])
    assert not measured


@pytest.mark.slow
def test_chunks_bound_the_memory_of_the_relation_term() -> None:
    sizes = (0, 8)
    whole, few = (
        memory.measured({**memory.BASE, "tasks": 256, "chunk": chunk}, LIMIT)["bytes"]
        for chunk in sizes
    )
    assert few < 0.6 * whole


@pytest.mark.slow
def test_a_process_that_wants_too_much_is_given_up() -> None:
    found = memory.measured({**memory.BASE, "tasks": 1024}, limit=4.0)
    assert found["bytes"] is None and found["tasks"] == 1024


@pytest.mark.slow
def test_inner_steps_that_are_computed_again_are_not_kept() -> None:
    case = {**memory.BASE, **memory.CONV, "steps": 10}
    kept, again = (
        memory.measured({**case, "recompute": recompute}, LIMIT)["bytes"]
        for recompute in (False, True)
    )
    assert again < 0.4 * kept


@pytest.mark.slow
def test_thousands_of_tasks_fit_where_each_asks_its_nearest() -> None:
    found = memory.measured({**memory.BASE, "tasks": 4096, **memory.NEAREST}, LIMIT)
    assert found["bytes"] < 2 * 2**30
