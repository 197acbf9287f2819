"""On another device than the CPU: the same numbers there, and nothing that waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parents[1] / "support"
WAIT = ("collect, top_k", "top_k on loop")
"""Cases in which Python has to know which models are asked."""


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch knows no devices that are written in Python.")
    script = [sys.executable, "-W", "error", str(HERE / "device_cases.py")]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.full
def test_the_numbers_are_those_of_the_cpu(found):
    assert len(found) > 15
    failed = {name: case["error"] for name, case in found.items() if "error" in case}
    assert not failed
    assert {name: case["off"] for name, case in found.items() if case["off"] > 1e-12} == {}
    assert [name for name, case in found.items() if not case["away"]] == []


@pytest.mark.full
def test_nothing_waits(found):
    waited = {name: case["waits"] for name, case in found.items() if case.get("waits")}
    assert set(waited) == set(WAIT), waited
