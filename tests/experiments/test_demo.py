import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trlearner.experiments.demo import __main__ as demo
from trlearner.experiments.demo import comparison, table
from trlearner.experiments.reporting.interval import Interval, interval, paired

QUICK = ["--quick", "--tasks", "4", "--workers", "1"]


def results(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One quick run's folder."""
    out = tmp_path_factory.mktemp("demo")
    assert demo.main([*QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def interrupted(finished, tmp_path_factory):
    """A copy of that folder in which a second run was stopped at its second seed; exit code and output."""
    out = shutil.copytree(finished, tmp_path_factory.mktemp("demo") / "again")
    work, threads, printed = demo.work, torch.get_num_threads(), StringIO()

    def until_the_last(job, tell):
        if (job.seed, job.name) == (1, demo.ARMS[1]):
            raise KeyboardInterrupt
        return work(job, tell)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(demo, "work", until_the_last)
        code = demo.main([*QUICK, "--out", str(out)])
    assert torch.get_num_threads() == threads
    return out, code, printed.getvalue()


@pytest.mark.full
def test_both_arms_have_finite_numbers(finished):
    found = results(finished)
    assert found["seeds"] == [0, 1]
    assert not found["interrupted"]
    assert found["settings"]["tasks"] == 4
    assert found["versions"]["torch"] == torch.__version__
    assert list(found["arms"]) == ["MAML", "MAML + TRLearner", "MAML + memory"]
    for arm in found["arms"].values():
        assert len(arm["test_mse"]) == 2
        assert all(math.isfinite(value) and value > 0 for value in arm["test_mse"])
        assert math.isfinite(arm["half_width"])
    assert all(found["arms"][name]["milliseconds"] > 0 for name in ("MAML", "MAML + TRLearner"))


@pytest.mark.full
def test_the_difference_is_paired_by_seed(finished):
    found = results(finished)
    plain = found["arms"]["MAML"]
    for name in ("MAML + TRLearner", "MAML + memory"):
        other, difference = found["arms"][name], found["differences"][name]
        assert difference["mean"] == pytest.approx(other["mean"] - plain["mean"], abs=1e-9)
        by_seed = [b - a for a, b in zip(plain["test_mse"], other["test_mse"], strict=True)]
        assert difference["test_mse"] == by_seed
        assert any(value != 0 for value in by_seed), f"{name} changed nothing"


@pytest.mark.full
def test_pictures_are_written(finished):
    for name in ("functions.png", "relations.png", "memory.png"):
        content = (finished / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


@pytest.mark.full
def test_tensorboard_holds_the_curves(finished):
    tags = {}
    for folder in (finished / "tensorboard").iterdir():
        events = EventAccumulator(str(folder)).Reload()
        tags[folder.name] = set(events.Tags()["scalars"]) | set(events.Tags()["images"])
    curves = {"loss/task", "test/mse"}
    assert tags["seed0-maml"] == tags["seed1-maml"] == curves
    watched = {
        "trlearner.loss/relation",
        "trlearner.gradient/cosine",
        "trlearner.relations/clustered",
    }
    for seed in (0, 1):
        assert curves | watched <= tags[f"seed{seed}-trlearner"]
    assert "relations/test" in tags["seed1-trlearner"]


@pytest.mark.full
def test_the_last_point_of_the_curve_is_the_result(finished):
    events = EventAccumulator(str(finished / "tensorboard" / "seed0-maml")).Reload()
    last = events.Scalars("test/mse")[-1]
    assert last.step == 20
    result = results(finished)["arms"]["MAML"]["test_mse"][0]
    assert last.value == pytest.approx(result, rel=1e-6)  # TensorBoard keeps float32


@pytest.mark.full
def test_processes_find_the_same(finished, tmp_path):
    """As a command: its processes must find what they are to do."""
    command = [sys.executable, "-m", "trlearner.experiments.demo", *QUICK[:-1], "2"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "seed 2/2  step 20/20  MAML + TRLearner, " in ran.stdout
    for name, arm in results(finished)["arms"].items():
        assert results(tmp_path)["arms"][name]["test_mse"] == arm["test_mse"]


@pytest.mark.full
def test_interrupted_it_reports_the_finished_seed(interrupted):
    out, code, printed = interrupted
    assert code == 130
    found = results(out)
    # No terminal, so plain lines.
    assert re.match(r"seed 1/2  step 5/20  MAML, [\d.]+ ms a step, \d+ s left\n", printed)
    assert found["interrupted"]
    assert found["seeds"] == [0]
    assert found["differences"]["MAML + memory"]["half_width"] is None
    assert "Interrupted: 1 of 2 seeds" in printed
    assert "MAML + memory: one seed says nothing" in printed
    assert f"tensorboard --logdir {out / 'tensorboard'}" in printed
    assert (out / "functions.png").exists()


@pytest.mark.full
def test_a_second_run_replaces_the_first_and_gives_the_same_numbers(finished, interrupted):
    out, _, _ = interrupted
    for name, arm in results(finished)["arms"].items():
        assert results(out)["arms"][name]["test_mse"] == arm["test_mse"][:1]
    # One of the second seed's learners was trained. Of the first run, nothing is left.
    curves = {path.parent.name for path in out.glob("tensorboard/*/*tfevents*")}
    assert curves == {"seed0-maml", "seed0-trlearner", "seed1-maml"}


def test_interrupted_at_once_it_ends_without_a_table(monkeypatch, tmp_path, capsys):
    def at_once(job, tell):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "work", at_once)
    assert demo.main([*QUICK, "--out", str(tmp_path)]) == 130
    assert "Interrupted: 0 of 2 seeds" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()


def test_arms_start_alike():
    plain, related = (
        comparison.make_arm("", comparison.Settings(), 3, lam).learner.state_dict()
        for lam in (0.0, 0.1)
    )
    for name, value in plain.items():
        assert torch.equal(value, related[name])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((-0.5, 0.4), "It lowers the test MSE"),
        ((0.5, 0.4), "It raises the test MSE"),
        ((-0.5, 0.6), "no difference that can be told from zero"),
        ((0.5, 0.6), "no difference that can be told from zero"),
        ((0.5, None), "one seed says nothing"),
        ((math.nan, math.nan), "diverged"),
    ],
)
def test_the_verdict_follows_the_interval(values, says):
    assert says in table.verdict(Interval(*values), "It")


def test_intervals_match_the_tables_of_student():
    values = [1.0, 2.0, 4.0, 7.0, 11.0]
    found = interval(values)
    assert found.mean == 5.0
    expected = 2.776445 * statistics.stdev(values) / math.sqrt(5)  # t at 97.5 %, 4 degrees
    assert found.half_width == pytest.approx(expected, rel=1e-6)
    assert paired(values, [v + 1 for v in values]) == Interval(1.0, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--lam", "0"],
        ["--workers", "0"],
        ["--lam", "nan"],
        ["--tasks", "2"],
        ["--tasks", "481"],
        ["--steps", "0"],
    ],
)
def test_senseless_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        demo.parse(wrong)
    assert "error: --" in capsys.readouterr().err
