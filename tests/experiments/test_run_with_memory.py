"""`trlearner run --memory`: a run's memory is made of its weights, tested on its tasks, and made once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import Memory, presets
from trlearner.experiments.runs import recall, train
from trlearner.experiments.runs.build import make_problem
from trlearner.experiments.runs.evaluate import TEST_SEED, evaluate

import trlearner as tr

SMALL = Config(
    "regression/sinusoid-classic",
    lam=0.0,
    steps=4,
    tasks=4,
    shots=3,
    queries=4,
    inner_steps=1,
    validate_every=2,
    validation_tasks=4,
    test_tasks=7,
)
SIZE = Memory(tasks=12, samples=15)


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "memory_of", lambda problem: SIZE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a memory."""
    folder = tmp_path_factory.mktemp("trained")
    train.run(SMALL, folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def no_training(step: int, note: str) -> None:
    raise AssertionError("a finished run must not train again")


def by_hand(folder: Path) -> tuple[tr.TaskMemory, Any]:
    """The memory of a run, made step by step."""
    problem = make_problem(SMALL, None, "cpu")
    weights = torch.load(folder / "weights.pt", weights_only=True)
    memory = tr.TaskMemory(recall.trained(SMALL, problem, weights, "cpu"), problem.loss_fn)
    memory.remember(recall.training_tasks(SMALL, SIZE, None, "cpu"))
    memory.tune()
    return memory, problem


@pytest.mark.filterwarnings("ignore:.* models are not remembered")
def test_a_finished_run_gets_a_memory_that_is_tested_on_its_own_test_tasks(folder: Path) -> None:
    result = (folder / "result.json").read_bytes()
    found = recall.run(SMALL, folder, watch=no_training)["memory"]
    assert found == json.loads((folder / "memory.json").read_text())
    assert (folder / "result.json").read_bytes() == result
    memory, problem = by_hand(folder)
    assert (found["tasks"], found["samples"]) == (len(memory), SIZE.samples)
    assert sum(found["left_out"].values()) == SIZE.tasks - len(memory)
    assert (found["share"], found["neighbours"]) == (memory.share, memory.neighbours)
    assert (found["spread"], found["noise"]) == (memory.spread, memory.noise)
    for split in ("test", "shifted"):
        expected = evaluate(memory, problem, split, SMALL.test_tasks, TEST_SEED)
        assert found[split]["1"]["mse"] == expected["mse"]
    generator = torch.Generator().manual_seed(TEST_SEED)
    test = problem.source.sample("test", SMALL.test_tasks, generator)
    answers, deviations = memory.adapt(test.support)(test.query, std=True)
    for i, share in enumerate(found["test"]["1"]["coverage"]["tasks"]):
        gaps = (answers[i] - test.query.y[i]).abs().flatten().tolist()
        widths = deviations[i].flatten().tolist()
        assert share == sum(g <= 1.96 * w for g, w in zip(gaps, widths, strict=True)) / len(gaps)


@pytest.mark.full
def test_a_memory_is_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recall.run(SMALL, folder, watch=no_training)
    monkeypatch.delattr(tr, "TaskMemory")
    assert recall.run(SMALL, folder, watch=no_training) == first


@pytest.mark.full
def test_interrupted_while_remembering_it_goes_on_from_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tr.TaskMemory, "remember", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recall.run(SMALL, folder)
    assert not (folder / "memory.json").exists()
    assert recall.run(SMALL, folder, watch=no_training)["memory"]["metric"] == "mse"


@pytest.mark.full
def test_without_a_share_results_are_the_learners_own_and_have_no_band(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = tr.TaskMemory.tune

    def to_nothing(memory: tr.TaskMemory) -> Any:
        tuned = tune(memory)
        memory.share = 0.0
        return tuned

    monkeypatch.setattr(tr.TaskMemory, "tune", to_nothing)
    found = recall.run(SMALL, folder)
    assert found["memory"]["test"] == found["test"]


def test_weights_that_are_gone_or_damaged_are_told(folder: Path) -> None:
    (folder / "weights.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"weights.pt is damaged. Remove it and result.json"):
        recall.run(SMALL, folder)
    (folder / "weights.pt").unlink()
    with pytest.raises(ValueError, match=r"weights.pt is gone, and a memory is made of these"):
        recall.run(SMALL, folder)


def test_what_cannot_be_remembered_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recall.make_problem

    def few_views(config: Config, *more: Any) -> Any:
        if config.queries > 7:
            raise ValueError("an object must have 15 views")
        return made(config, *more)

    monkeypatch.setattr(recall, "make_problem", few_views)
    with pytest.raises(ValueError, match="an object must have 15 views"):
        recall.run(SMALL, tmp_path, watch=no_training)
    assert not list(tmp_path.iterdir())


def test_no_more_tasks_and_samples_are_remembered_than_training_has() -> None:
    known = recall.training_tasks(replace(SMALL, train_tasks=5, pool=9), SIZE, None, "cpu")
    assert known.support.x.shape == (5, 3, 1) and known.query.x.shape == (5, 6, 1)
    many = recall.training_tasks(replace(SMALL, queries=40), SIZE, None, "cpu")
    assert many.query.x.shape == (12, 40, 1)


def test_problems_whose_classes_change_have_no_memory() -> None:
    without = {name for name, preset in presets().items() if preset.memory is None}
    assert without == {name for name in presets() if name.startswith("images/")}
