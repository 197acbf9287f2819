"""The evidence table is what the raw numbers say, and every stage does only what is missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from trlearner.experiments.data.files import read_json, write_json
from trlearner.experiments.evidence import collect, recall, remember, remembered, table
from trlearner.experiments.evidence.cells import ARMS, CELLS, TUNING_SEED, Cell, best
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import Memory
from trlearner.experiments.runs import train

SMALL = {
    "steps": 4,
    "tasks": 3,
    "inner_steps": 1,
    "validate_every": 2,
    "validation_tasks": 4,
    "test_tasks": 6,
    "train_tasks": 12,
}
RATES = ({"inner_lr": 0.01}, {"inner_lr": 0.03})
CELL = Cell(
    "curves, maml",
    "regression/harmonic",
    "maml",
    SMALL,
    RATES,
    seeds=2,
    remembered=8,
    samples=20,
    longer={"steps": 6},
)


def run(root: Path, config: Config) -> None:
    train.run(config, root / config.problem / config.hash(), engine="batched")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for config in CELL.rate_candidates():
        run(root, config)
    for config in CELL.term_candidates(root):
        run(root, config)
    for seed in range(2):
        for arm in ARMS:
            run(root, CELL.arm(arm, root, seed))
    return root


@pytest.mark.full
def test_arms_differ_by_the_term_alone(runs: Path) -> None:
    alone, paper, term = (CELL.arm(arm, runs, 1) for arm in ARMS)
    assert (alone.lam, alone.seed, alone.steps) == (0, 1, 6)
    assert {config.steps for config in CELL.term_candidates(runs)} == {4}
    said = {"lam": 0.1, "normalize": "quotient", "mixture": "values", "align": "none"}
    assert paper == replace(alone, **said)
    assert term.normalize == "softmax" and term.lam in (0.03, 0.3)
    assert replace(term, lam=0.0, normalize="sum") == alone


@pytest.mark.full
def test_the_best_on_validation_tasks_is_chosen(runs: Path) -> None:
    scores = {}
    for config in CELL.rate_candidates():
        lines = (runs / config.problem / config.hash() / "metrics.jsonl").read_text().splitlines()
        scores[config.hash()] = min(json.loads(x)["validation"]["mse"]["mean"] for x in lines)
        assert config.seed == TUNING_SEED
    assert best(CELL.rate_candidates(), runs).hash() == min(scores, key=scores.__getitem__)


def test_what_was_not_tuned_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no result yet: run the stages before this one"):
        CELL.arm("alone", tmp_path, 0)
    assert list(CELL.done(tmp_path)) == []


def test_cells_are_those_of_the_protocol() -> None:
    assert len(CELLS) == len({cell.name for cell in CELLS}) == 19
    assert all(cell.seeds <= TUNING_SEED for cell in CELLS)


@pytest.mark.full
def test_from_runs_to_the_table(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recall.recall_all([CELL], runs, None)
    assert (
        capsys.readouterr().out.count("curves, maml: share") == 4
    )  # the paper's runs have no column with one
    recall.recall_all([CELL], runs, None)
    assert capsys.readouterr().out == ""
    collect.collect([CELL], runs, tmp_path)
    record = read_json(tmp_path / "curves-maml.json.gz")
    assert len(record["runs"]) == 6 and len(record["tuning"]) == 4
    for one in record["runs"]:
        folder = runs / CELL.problem / CELL.arm(one["arm"], runs, one["seed"]).hash()
        told = json.loads((folder / "result.json").read_text())["test"]["1"]["mse"]["tasks"]
        assert one["tasks"] == pytest.approx(told, rel=1e-4)
        assert (one["tasks_with_memory"] is None) == (one["arm"] == "paper")
    unrun = replace(CELL, name="curves, tnet")
    monkeypatch.setattr(table, "CELLS", (CELL, unrun))
    text = table.write(tmp_path)
    assert "| curves, maml | 2 of 2 |" in text
    assert "| curves, tnet | 0 of 2 | not run |" in text
    assert {p.name for p in tmp_path.glob("table.*")} == {
        "table.md", "table.json", "table.png", "table.svg"
    }  # fmt: skip
    assert text == (tmp_path / "table.md").read_text().rstrip("\n")


def test_gradients_of_the_two_losses_are_read_from_what_was_watched(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate([0.5, 0.7, math.nan, 9.0, 9.0, 9.0, 9.0, 0.1, 0.3]):
            writer.add_scalar("trlearner.gradient/cosine", value, step)
    assert collect.gradients(tmp_path) == {"cosine": pytest.approx([0.6, 0.2])}


def test_agreement_of_gradients_is_told(tmp_path: Path) -> None:
    seen = {"cosine": [0.5, -0.25], "ratio": [0.125, 1.0]}
    runs = [{**raw("paper", 0, [1.0]), "gradients": seen}, raw("alone", 0, [1.0])]
    record = {"cell": CELLS[0].name, "runs": runs}
    write_json(tmp_path / "one.json.gz", record)
    assert f"| {CELLS[0].name} | 0.50 | -0.25 | 0.12 | 1.00 |" in table.write(tmp_path)


def raw(arm: str, seed: int, tasks: list[float | None], better: str = "lower") -> dict:
    shared = {"metric": "mse", "better": better, "tasks_with_memory": None, "gradients": {}}
    shared["trivial"] = {"constant": {"mse": {"mean": 4.0}}}
    return {"arm": arm, "seed": seed, "tasks": tasks, **shared}


def test_a_difference_is_paired_by_seed_and_task_and_positive_where_better() -> None:
    g = np.random.default_rng(0)
    base = g.uniform(1, 9, (3, 40))
    runs = [raw("alone", s, base[s].tolist()) for s in range(3)]
    runs += [raw("term", s, (base[s] - 0.1 + 0.01 * g.normal(size=40)).tolist()) for s in range(2)]
    found = table.compare(runs, "term", "tasks", comparisons=76)
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert (found.sign, found.seeds) == (1, 2)
    assert found.low < found.mean < found.high
    worse = [{**run, "better": "higher"} for run in runs]
    assert table.compare(worse, "term", "tasks", 76).sign == -1
    assert table.compare(runs, "paper", "tasks", 76).mean is None


def test_correction_asks_for_more() -> None:
    g = np.random.default_rng(1)
    base = g.uniform(1, 9, (5, 40))
    noise = g.normal(size=(5, 40))
    runs = [raw("alone", s, base[s].tolist()) for s in range(5)]
    runs += [raw("term", s, (base[s] - 0.18 + noise[s]).tolist()) for s in range(5)]
    assert [table.compare(runs, "term", "tasks", n).corrected for n in (1, 10**6)] == [1, 0]
    assert table.compare(runs, "term", "tasks", 10**6).sign == 1


def test_tasks_that_explode_count_for_ten_times_a_constant_answer(tmp_path: Path) -> None:
    runs = [raw("alone", s, [1.0, 2.0, 1e21]) for s in range(2)]
    runs += [raw("term", 0, [1.0, None, 39.0]), raw("term", 1, [1.0, 2.0, 41.0])]
    assert table.values(runs, "alone", "tasks")[0].tolist() == [1.0, 2.0, 40.0]
    assert table.values(runs, "term", "tasks")[0].tolist() == [1.0, 40.0, 39.0]
    assert [table.exploded(runs, arm, "tasks") for arm in ("alone", "term")] == [2, 2]
    write_json(tmp_path / "one.json.gz", {"cell": CELLS[0].name, "runs": runs})
    assert "(2 tasks exploded)" in table.write(tmp_path)


def test_scores_that_are_not_finite_are_said_to_have_diverged() -> None:
    runs = [raw("alone", s, [0.1, 0.2], "higher") for s in range(2)]
    runs += [raw("term", 0, [0.1, None], "higher"), raw("term", 1, [0.1, 0.2], "higher")]
    found = table.compare(runs, "term", "tasks", 76)
    assert np.isnan(found.mean)
    assert table.cell_text(found, 1, "higher") == "diverged"


def test_one_seed_has_no_interval() -> None:
    runs = [raw("alone", 0, [1.0, 2.0]), raw("term", 0, [0.5, 2.0])]
    found = table.compare(runs, "term", "tasks", 76)
    assert found.half is None
    assert table.cell_text(found, 1, "lower") == "-0.250 (one seed)"


def test_a_table_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no raw numbers"):
        table.write(tmp_path)


@pytest.mark.full
def test_remembering_uses_more_samples_than_training(runs: Path) -> None:
    config = CELL.arm("alone", runs, 0)
    weights = runs / config.problem / config.hash() / "weights.pt"
    few, many = (recall.recall(config, weights, Memory(12, n), 40, None) for n in (20, 100))
    assert few["test"].keys() == many["test"].keys() == {"mse"}
    torch.manual_seed(0)
    again = recall.recall(config, weights, Memory(12, 100), 40, None)
    assert again == many


@pytest.mark.full
def test_memories_are_measured_on_fresh_tasks(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect.collect([CELL], runs, tmp_path)
    monkeypatch.setattr(remember, "SEEDS", 2)
    monkeypatch.setattr(remembered, "CELLS", [CELL])
    trained = list(runs.rglob("result.json"))
    remember.remember_all([CELL], runs, tmp_path, None)
    assert list(runs.rglob("result.json")) == trained  # nothing was missing
    file = tmp_path / "remembered" / "curves-maml.json.gz"
    made = read_json(file)["runs"]
    assert [run["seed"] for run in made] == [0, 1]
    for run in made:
        assert all(len(run[arm]["tasks"]) == 6 for arm in ("own", "defaults", "tuned"))
        assert run["defaults"]["covered"] is not None
    before = file.stat().st_mtime_ns
    remember.remember_all([CELL], runs, tmp_path, None)
    assert file.stat().st_mtime_ns == before
    own, tuned = (np.array([run[arm]["tasks"] for run in made]) for arm in ("own", "tuned"))
    change = 100 * (tuned.mean() / own.mean() - 1)
    line = remembered.write(tmp_path).splitlines()[2]
    assert line.startswith("| curves, maml | 2 | ") and f"| {change:+.0f} % |" in line


def test_the_table_of_memories_limits_errors_and_has_a_part_for_classes() -> None:
    constant = {"constant": {"mse": {"mean": 2.0}}}
    part = {"tasks": [1.0, 3.0], "covered": 0.95, "settings": {"share": 0.0}}
    run = {"seed": 0, "metric": "mse", "better": "lower", "constant": constant}
    run |= {"own": {"tasks": [2.0, 1e9]}, "defaults": part, "tuned": part}
    assert remembered.scores([run], "own").tolist() == [[2.0, 20.0]]
    line = remembered.row("x", [run], "tuned")
    assert "| 11.000 ± ? (1 task exploded) |" in line and "| -82 % | 95.0 to 95.0 % |" in line
    heads = {"metric": "accuracy", "better": "higher", "own": {"tasks": [0.5, 0.7]}}
    heads |= {"class means": part, "defaults": part, "tuned": part}
    assert "| 60.000 ± ? |" in remembered.row_of_classes("y", [heads])


def test_a_table_of_memories_needs_raw_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the stage `remember` first"):
        remembered.write(tmp_path)
