"""The command ``trlearner``, as a user types it."""

import json
from pathlib import Path

import pytest
from trlearner.experiments import cli
from trlearner.experiments.presets.preset import Memory
from trlearner.experiments.runs import recall

pytest.importorskip("tyro", reason="the command line needs tyro, from the extra 'experiments'")

SMALL = {"steps": 4, "tasks": 3, "shots": 2, "queries": 3, "inner-steps": 1}
SMALL |= {"validate-every": 2, "validation-tasks": 4, "test-tasks": 5}
QUICK = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"trlearner {name}" in told for name in cli.COMMANDS)


def test_help_of_a_problem_shows_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "regression/harmonic", "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "Lacoste et al. 2018" in told and "--inner-lr FLOAT" in told and "(default: 10)" in told


def test_a_run_trains_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "regression/sinusoid", *QUICK, "--lam", "0.5", "--out", str(tmp_path)]
    assert cli.main([*command, "--options", "noise=0.1"]) == 0
    told = capsys.readouterr().out
    assert "test      1 inner steps  mse: mean " in told and "shifted" in told
    assert "test     by constant      mse: mean " in told
    [config] = tmp_path.rglob("config.json")
    record = json.loads(config.read_text())
    assert (record["lam"], record["steps"], record["options"]) == (0.5, 4, {"noise": 0.1})


@pytest.mark.full
def test_a_run_with_a_memory_tells_its_results_beside_the_learners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "memory_of", lambda problem: Memory(tasks=12, samples=15))
    command = ["run", "regression/sinusoid-classic", *QUICK, "--lam", "0", "--memory"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    own, recalled = (
        told.index("test      1 inner steps  mse"),
        told.index("test      1 with memory  mse"),
    )
    assert own < recalled < told.index("test     by constant")
    assert "test      1 with memory  " in told and " % of the labels lie in the 95 % band" in told
    assert "The memory holds 12 training tasks by at most 15 samples each: share " in told


def test_a_memory_that_does_not_help_is_told() -> None:
    memory = {"tasks": 9, "samples": 15, "left_out": {"not finite": 3}, "share": 0.0}
    assert cli._remembered(memory) == (
        "The memory of 9 training tasks by at most 15 samples each (3 more would ruin answers) does not help "
        "for sure: answers are the learner's own."
    )


def test_interrupted_it_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["run", "regression/sinusoid", *QUICK, "--out", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setattr(cli.Progress, "advance", interrupt)
        assert cli.main(command) == 130
    assert f"Go on with:\n  trlearner {' '.join(command)}" in capsys.readouterr().out
    assert cli.main(command) == 0


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["walk"], "'walk' is no command; there are run"),
        (["run"], "name one of the problems: regression/sinusoid"),
        (["run", "regression/cosine"], "'regression/cosine' is none of the problems"),
        (
            ["run", "regression/sinusoid", "--options", "noise"],
            "options must be name=value, got 'noise'",
        ),
        (
            ["run", "regression/sinusoid", "--pool", "3"],
            "pool must hold the 5 support and 10 query",
        ),
        (
            ["run", "drugs/synthetic", "--options", "bits=[1]"],
            "drugs/synthetic cannot be made with the options {'bits': [1]}",
        ),
        (["run", "images/omniglot"], "Omniglot"),
        (["run", "images/glyphs", "--memory"], "images/glyphs has no memory: its classes change"),
        (["ablate", "images/glyphs", "--memory"], "Run it without --memory"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    command: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TRLEARNER_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    assert told in capsys.readouterr().err


def test_data_lists_problems_and_shows_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 0
    assert "regression/families" in capsys.readouterr().out
    assert cli.main(["data", "regression/families", "--shots", "3"]) == 0
    assert "Samples(x=[4, 3, 1], y=[4, 3, 1])" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "ablate", "data"])
def test_help_without_a_problem_lists_them(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"trlearner {command} PROBLEM" in shown
    assert "regression/sinusoid" in shown and "pose/meshes" in shown
