"""The memory of a meta-step: how it is measured, and that chunks bound it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trlearner.experiments.bench import memory

LIMIT = 12.0


def test_a_step_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--step", json.dumps({**memory.BASE, "tasks": 64})])
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] >= 0 and found["seconds"] > 0


def test_what_did_not_fit_is_in_the_table_and_not_in_the_plot(tmp_path: Path) -> None:
    rows = [{**case, "bytes": 2**20 * case["tasks"], "seconds": 0.5} for case in memory.CASES]
    rows[4] = {**memory.CASES[4], "bytes": None, "seconds": None}
    lines = memory.table(rows, LIMIT).splitlines()
    assert lines[2] == "| 16 | 5 | 40 | – | 16 | 0.50 |"
    assert lines[6] == "| 4096 | 5 | 40 | – | over 12 GiB | – |"
    memory.plot(rows, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


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
