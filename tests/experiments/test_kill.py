"""A sweep of real runs, killed by force again and again, ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="the command line needs tyro, from the extra 'experiments'")

KILLS = 20
SETTINGS = {"steps": 160, "tasks": 4, "validate-every": 5, "validation-tasks": 5, "test-tasks": 30}
SETTINGS |= {"seeds": 2, "workers": 2, "inner-steps": 2, "relation-queries": 0.5}


def sweep(out: Path) -> "subprocess.Popen[bytes]":
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "trlearner.experiments.cli", "ablate", "regression/sinusoid"]
    return subprocess.Popen(
        [*command, *options, "--lam", "0", "0.1", "--out", str(out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def files(out: Path) -> dict[str, bytes]:
    """All that must not depend on how the sweep went."""
    kept = ("config.json", "metrics.jsonl", "result.json")
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.name in kept}


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    started = time.perf_counter()
    whole = sweep(tmp_path / "whole")
    assert whole.wait() == 0
    lasts = time.perf_counter() - started
    chance, killed = random.Random(0), 0
    while killed < KILLS:
        process = sweep(tmp_path / "killed")
        # Mostly while runs are at work, now and then while it starts; never so late that all is done.
        time.sleep(chance.uniform(0.1, 0.6) * lasts if killed % 4 else chance.uniform(0.1, 2.0))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    last = sweep(tmp_path / "killed")
    assert last.wait() == 0
    found, expected = files(tmp_path / "killed"), files(tmp_path / "whole")
    assert len(expected) == 4 * 3
    assert found == expected
    assert killed >= 5, f"the sweep was over after {killed} kills: it is too short to show anything"
