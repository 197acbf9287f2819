"""Answers without learning: their numbers by hand, and where they are told."""

import json
from pathlib import Path

import pytest
import torch
from trlearner.experiments.data.problem import Problem
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import config_of
from trlearner.experiments.runs import train
from trlearner.experiments.runs.build import make_problem
from trlearner.experiments.runs.evaluate import TEST_SEED
from trlearner.experiments.runs.trivial import Constant, SupportMean, trivial

import trlearner as tr

CURVES = Config("regression/families", tasks=4, shots=3, queries=4)


@pytest.fixture(scope="module")
def curves() -> Problem:
    return make_problem(CURVES, None, "cpu")


def test_the_mean_of_each_support(curves: Problem) -> None:
    generator = torch.Generator().manual_seed(TEST_SEED)
    batch = curves.source.sample("test", 7, generator)
    errors = [
        ((y - seen.mean()) ** 2).mean().item()
        for seen, y in zip(batch.support.y, batch.query.y, strict=True)
    ]
    found = trivial(curves, "test", 7, 4, "cpu")["support mean"]
    assert found["mse"]["mean"] == pytest.approx(sum(errors) / 7, rel=1e-5)


def test_the_best_constant_is_near_the_spread_of_targets(curves: Problem) -> None:
    batch = curves.source.sample("test", 100, torch.Generator().manual_seed(TEST_SEED))
    least = batch.query.y.var(unbiased=False).item()
    found = trivial(curves, "test", 100, 4, "cpu")["constant"]["mse"]["mean"]
    assert least <= found * (1 + 1e-5)
    assert found < 1.2 * least


def test_samples_that_are_not_real_do_not_count() -> None:
    tasks = [
        (
            (torch.zeros(n, 1), torch.arange(float(n))[:, None]),
            (torch.zeros(2, 1), torch.zeros(2, 1)),
        )
        for n in (3, 5)
    ]
    batch = tr.TaskBatch.from_tasks(tasks)
    answers = SupportMean(torch.device("cpu")).adapt(batch.support)(batch.query)
    assert answers[..., 0].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert Constant(torch.tensor([3.0])).adapt(batch.support)(batch.query).flatten().tolist() == [
        3.0,
        3.0,
        3.0,
        3.0,
    ]


@pytest.mark.full
def test_classes_are_told_by_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path))
    config = config_of("images/glyphs", options={"drawings": 6})
    problem = make_problem(config, None, "cpu")
    assert trivial(problem, "test", 3, 2, "cpu") == {
        "chance": {"accuracy": {"mean": pytest.approx(0.2)}}
    }


def test_a_result_has_them_for_every_split(tmp_path: Path) -> None:
    train.run(Config("regression/families", steps=1, tasks=4, test_tasks=3), tmp_path)
    told = json.loads((tmp_path / "result.json").read_text())["trivial"]
    assert set(told) == {"test", "shifted"}
    for answers in told.values():
        assert set(answers) == {"constant", "support mean"}
        assert all(metrics["mse"]["mean"] > 0 for metrics in answers.values())
