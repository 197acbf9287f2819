"""What a user types wrong is one line that names it, status 2, and nothing made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from contracts import later
from trlearner.experiments import cli
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import sweep, train

pytest.importorskip("tyro", reason="the command line needs tyro, from the extra 'experiments'")
pytestmark = pytest.mark.unchecked

NUMBERS = ["-1", "nan", "x"]
WRONG: dict[Any, list[str]] = {int: [*NUMBERS, "1.5"], float: NUMBERS}


def settings(command: str) -> Iterator[tuple[str, str]]:
    """Every setting of a command with every kind of wrong value."""
    of = {
        **get_type_hints(Config),
        **get_type_hints(cli.Sweep if command == "ablate" else cli.Where),
    }
    if command == "ablate":
        of = {**of, "seeds": int, "seed": None}
    for name, kind in of.items():
        kinds = {kind, *get_args(kind)}
        option = f"--{name.replace('_', '-')}"
        for number in (int, float):
            yield from ((option, value) for value in WRONG[number] if number in kinds)
    yield from (
        (f"--{name}", "0") for name in ("ways", "tasks", "shots", "queries", "pool", "top-k")
    )
    yield from ((f"--{name}", "0") for name in ("steps", "dim", "heads", "temperature", "threads"))
    yield from (
        (f"--{name}", "0") for name in ("train-tasks", "validate-every", "relation-queries")
    )
    yield from ((f"--{name}", "0") for name in ("validation-tasks", "test-tasks"))
    yield from (
        (f"--{name}", "x") for name in ("learner", "encoder", "normalize", "mixture", "align")
    )
    yield from ((f"--{name}", "x") for name in ("sampler", "engine", "device", "nonsense"))
    yield from (("--average", "1"), ("--device", "cuda:99"), ("--device", ""), ("--engine", ""))
    options = (
        "noise",
        "x y=1",
        "../x=1",
        "omega=1",
        "noise=-1",
        "noise=nan",
        "noise=x",
        "noise=1e999",
    )
    yield from (
        ("--options", text) for text in (*options, "noise=[1]", "noise=" + "(" * 5000, "=1", "")
    )
    yield from (
        ("--out", "FILE"),
        ("--out", "FILE/in"),
        ("--out", "/dev/null"),
        ("--out", "x" * 5000),
    )
    yield from (
        ("--data-dir", "FILE"),
        ("--data-dir", "nowhere"),
        ("--tasks", "481"),
        ("--pool", "3"),
        ("--memory", "3"),  # a flag has no value
    )
    yield from (("--train-tasks", "3"), ("--test-steps", "-1"), ("--lam", ""), ("lam", "1"))
    if command == "ablate":
        yield from (
            ("--workers", "0"),
            ("--seeds", "0"),
            ("--stale-minutes", "0"),
            ("--on", "there"),
        )


def unreached(*_: object, **__: object) -> None:
    raise AssertionError("training began")


@pytest.fixture
def in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, where training fails the test."""
    monkeypatch.delenv("TRLEARNER_DATA", raising=False)
    monkeypatch.setattr(train, "_train", unreached)
    monkeypatch.setattr(sweep, "ablate", unreached)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    return tmp_path


@pytest.mark.parametrize("command", ["run", *later("ablate")])
def test_every_wrong_value_is_one_line(
    command: str, in_vain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = 0
    # The two share all but their own settings, which come last.
    for option, value in list(settings(command))[:: 4 if command == "ablate" else 1]:
        words = [option, *([] if not value and option == "--lam" else [value])]
        status = cli.main([command, "regression/sinusoid", *words])
        error = capsys.readouterr().err
        told = f"{option} {value:.20} gives {status}: {error:.300}"
        assert status == 2, told
        assert error.startswith("trlearner: ") and error.count("\n") == 1, told
        assert 30 < len(error) < 700 and "Traceback" not in error, told
        name = option.strip("-").replace("-", "_")
        assert name in error.replace("-", "_") or name == "options" or value in error, told
        tried += 1
    assert tried > 30
    assert [path.name for path in in_vain.iterdir()] == ["FILE"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report"], "PATH Where the runs lie"),
        (["report", "nowhere"], "nowhere must hold the folders of runs"),
        (["report", "FILE"], "out must be a folder"),
        (["report", ".", "--baseline", "x"], "baseline must be NAME=VALUE"),
        (["report", ".", "--baseline", "x=1"], "baseline must name a setting"),
        (["report", ".", "--out", "FILE"], "out must be a folder"),
        (["report", ".", "--out", "FILE/in"], "out must be a folder"),
        (["report", ".", "--depth", "1"], "Unrecognized"),
        (["data", "regression/cosine"], "'regression/cosine' is none of the problems"),
        (["ablate"], "name one of the problems"),
        (["walk\n" * 99], "is no command"),
    ],
)
def test_other_mistakes_are_one_line(
    words: list[str], said: str, in_vain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("trlearner: ") and error.count("\n") == 1
    assert [path.name for path in in_vain.iterdir()] == ["FILE"]


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--rounds", "1.5"],
        ["--threads", "-1"],
        ["--budget", "nan"],
        ["--budget", "-1"],
        ["--workloads", "nothing"],
        ["--workloads"],
        ["--contenders", "nothing"],
        ["--json", "nowhere/a.json"],
        ["--json", "."],
        ["--json", "FILE", "--add"],
        ["--learn2learn", "nowhere"],
        ["--nonsense"],
    ],
)
def test_the_bench_refuses_before_it_times(
    words: list[str], in_vain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from trlearner.experiments.bench import session

    monkeypatch.setattr(session, "run", unreached)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", *words])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in error and words[0] in error.replace("unrecognized arguments: ", "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tyro", ["run", "regression/sinusoid"]),
        pytest.param("tyro", ["report", "."], marks=pytest.mark.full),
        pytest.param("matplotlib", ["report", "."], marks=pytest.mark.full),
        pytest.param("matplotlib", ["bench"], marks=pytest.mark.full),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    name: str, words: list[str], in_vain: Path
) -> None:
    code = f"import sys; sys.modules[{name!r}] = None\nfrom trlearner.experiments import cli\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(cli.main({words!r}))"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    text = (
        f"trlearner: {name} is not installed. Install it with pip install 'trlearner[experiments]'."
    )
    assert done.stderr.strip() == text


def test_ctrl_c_is_a_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", {"run": interrupted})
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == "\ntrlearner: stopped by Ctrl-C.\n"


def test_too_little_memory_is_a_line_and_other_faults_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(words: list[str]) -> int:
        raise RuntimeError(words[0])

    monkeypatch.setattr(cli, "COMMANDS", {"run": fails})
    assert cli.main(["run", "DefaultCPUAllocator: can't allocate memory"]) == 2
    assert "there is not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main(["run", "a fault of ours"])


def test_every_setting_is_in_the_matrix() -> None:
    tried = {option for option, _ in settings("ablate")}
    names = {one.name for one in (*fields(Config), *fields(cli.Sweep))} - {
        "problem",
        "seed",
        "address",
    }
    assert {f"--{name.replace('_', '-')}" for name in names} <= tried
