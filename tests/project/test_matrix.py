"""The matrix of Pythons and torches: which rows there are, how they are run, and what is said of them."""

import subprocess
import sys
from pathlib import Path

import matrix
import pytest
from matrix import Result, Row

HERE = "{}.{}".format(*sys.version_info)
ROOT = Path(__file__).parents[2]
in_repository = pytest.mark.skipif(
    not (ROOT / "Makefile").exists(), reason="there is no Makefile beside these tests."
)


def test_every_python_has_the_pinned_torch_and_one_has_the_others():
    found = {"3.8": "old", HERE: "this", "4.0": "new"}
    names = [row.name for row in matrix.rows(found, "1.0.0", "2.0.0")]
    assert names == [
        "python3.8-torch2.0.0",
        f"python{HERE}-torch2.0.0",
        "python4.0-torch2.0.0",
        f"python{HERE}-torch1.0.0",
        f"python{HERE}-torch-newest",
    ]


def test_pythons_are_those_that_run():
    assert matrix.pythons(sys.executable) == {HERE: sys.executable}
    with pytest.raises(SystemExit, match="PYTHONS names 'no-such-python', which does not run"):
        matrix.pythons("no-such-python")


def test_the_lowest_torch():
    assert matrix.lowest_torch('dependencies = ["torch>=2.6", "numpy>=1"]') == "2.6.0"
    assert matrix.lowest_torch('"torch>=2.7.1",') == "2.7.1"


@pytest.fixture
def made(monkeypatch):
    """What make was asked for; `outputs` is what it answers, by target."""
    asked, outputs = [], {"install": (0, ""), "test": (0, "1 passed in 1.00s")}

    def make(arguments):
        asked.append(arguments)
        status, text = outputs["test" if arguments[0] == "test" else "install"]
        return subprocess.CompletedProcess(arguments, status, text)

    monkeypatch.setattr(matrix, "make", make)
    return asked, outputs


@pytest.fixture
def row(tmp_path):
    """A row whose environment is this one."""
    made = Row(HERE, sys.executable, "2.0.0")
    bin_ = tmp_path / made.name / "bin"
    bin_.mkdir(parents=True)
    python = bin_ / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return made


@in_repository
@pytest.mark.full
def test_a_row_asks_make_for_its_environment_and_its_tests(made, row, tmp_path):
    asked, outputs = made
    outputs["test"] = 1, "FAILED a::b - no\n= 1 failed, 7 passed in 9.87s (0:00:09) ="
    result = matrix.run(row, tmp_path)
    folder = tmp_path / row.name
    settings = [
        f"VENV={folder}",
        f"PYTHON={sys.executable}",
        f"CONSTRAINTS={folder / 'constraints.txt'}",
    ]
    assert asked == [[str(folder / ".ready"), *settings], ["test", *settings]]
    assert "\ntorch==2.0.0\n" in (folder / "constraints.txt").read_text()
    assert (result.passed, result.verdict) == (False, "1 failed, 7 passed")
    assert result.details == ("FAILED a::b - no",)
    outputs["test"] = 0, "= 8 passed in 9.87s ="
    assert matrix.run(row, tmp_path).passed


@in_repository
@pytest.mark.full
def test_an_environment_is_kept_but_installs_this_checkout(made, row, tmp_path):
    matrix.run(row, tmp_path)
    folder = tmp_path / row.name
    ready, constraints = folder / ".ready", folder / "constraints.txt"
    ready.touch()
    before = constraints.stat().st_mtime_ns
    matrix.run(row, tmp_path)
    assert ready.exists() and constraints.stat().st_mtime_ns == before
    (folder / "root").write_text("/another/checkout")
    matrix.run(row, tmp_path)
    assert not ready.exists()


@in_repository
def test_what_cannot_be_installed_is_named_with_the_reason(made, row, tmp_path):
    _, outputs = made
    outputs["install"] = (
        2,
        "collecting\nERROR: No matching distribution found for torch==2.0.0\nmake: *** Error 1",
    )
    result = matrix.run(row, tmp_path)
    assert (result.passed, result.verdict) == (False, "not installed")
    told = matrix.table([result, Result(row, "2.0.0+cpu", True, "8 passed")])
    assert f"| {HERE} | 2.0.0 | not installed |\n| {HERE} | 2.0.0+cpu | 8 passed |" in told
    assert "* `ERROR: No matching distribution found for torch==2.0.0`" in told


def test_of_many_failures_some_are_shown():
    row = Row("3.10", "python", "")
    told = matrix.table(
        [Result(row, "", False, "9 failed", tuple(f"FAILED {i}" for i in range(9)))]
    )
    assert "FAILED 4" in told and "FAILED 5" not in told and "* and 4 more" in told
    assert "| 3.10 | newest | 9 failed |" in told


@in_repository
def test_the_makefile_takes_the_settings():
    settings = ["VENV=/env", "PYTHON=a-python", "CONSTRAINTS=pyproject.toml"]
    told = matrix.make(["-n", "test", *settings]).stdout
    assert "a-python -m venv /env" in told
    assert "/env/bin/python -m pip install -qq -c pyproject.toml setuptools" in told
    assert "/env/bin/pytest" in told and "constraints.txt" not in told
