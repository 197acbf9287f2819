"""What remembered training tasks take off a learner's error, on fresh test tasks: by the Gaussian rule.

The runs are those of the learners alone in the evidence table, whose settings stand with its raw numbers. A
memory's settings are the defaults, or come from leave-one-out over the remembered tasks. On assays they come
from several draws of the validation assays: the learner knows its training assays so well (an error of 0.1
where new ones have 0.9) that others never help there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trlearner.experiments.data import files
from trlearner.experiments.data.problem import Problem
from trlearner.experiments.evidence.cells import Cell
from trlearner.experiments.evidence.collect import file_of, short
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import Memory, presets
from trlearner.experiments.runs import train
from trlearner.experiments.runs.build import make_problem
from trlearner.experiments.runs.evaluate import VALIDATION_SEED, evaluate
from trlearner.experiments.runs.recall import (
    Banded,
    remembering,
    settings_of,
    trained,
    training_tasks,
)

import trlearner as tr

FRESH_SEED = 4_000_000
"""Of test tasks that nothing else was ever tried on."""

SEEDS, DRAWS, VALIDATED = 3, 5, 8
"""Runs of a cell; and of a finite set of assays, so many draws of their shots to test on, and to tune by."""


def remember_all(cells: Sequence[Cell], root: Path, results: Path, data_dir: Path | None) -> None:
    """Writes ``RESULTS/remembered/NAME.json.gz`` for every cell with a head that may be remembered.

    A run that is missing is trained first. A cell that is done is not repeated.

    Args:
        cells: Of the evidence table.
        root: Where runs lie.
        results: Where the table's raw numbers lie.
        data_dir: Where real data lies.
    """
    for seed in range(SEEDS):
        for cell in cells:
            out = results / "remembered" / file_of(cell)
            made = files.read_json(out) if out.exists() else {"cell": cell.name, "runs": []}
            raw = results / file_of(cell)
            if len(made["runs"]) > seed or not raw.exists() or cell.learner == "protonet":
                continue
            config = alone(files.read_json(raw), seed)
            folder = root / config.problem / config.hash()
            train.run(config, folder, data_dir=data_dir, engine=cell.engine)
            weights = torch.load(folder / "weights.pt", weights_only=True)
            made["runs"].append(remember(cell, config, weights, data_dir))
            out.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(out, made)
            print(f"{cell.name}, seed {seed}: {said(made['runs'][-1])}", flush=True)


def alone(record: dict[str, Any], seed: int) -> Config:
    """The settings of the learner alone, as the table's raw numbers have them."""
    (found,) = (
        run["config"] for run in record["runs"] if run["arm"] == "alone" and run["seed"] == seed
    )
    return Config.read(found)


def remember(
    cell: Cell, config: Config, weights: dict[str, Tensor], data_dir: Path | None
) -> dict[str, Any]:
    """Every test task's score, by what answers.

    Args:
        cell: Says how much is remembered.
        config: Of the run.
        weights: Its best ones.
        data_dir: Where real data lies.
    """
    problem = make_problem(config, data_dir, "cpu")
    learner = trained(config, problem, weights, "cpu", "batched")
    known = training_tasks(config, Memory(cell.remembered, cell.samples), data_dir, "cpu")
    usual = presets()[config.problem].memory
    metric = problem.metrics[0]
    found: dict[str, Any] = {
        "seed": config.seed,
        "metric": metric.name,
        "better": metric.better,
        "constant": train.trivial(problem, "test", config.test_tasks, config.tasks, "cpu"),
        "own": {"tasks": _scores(learner, problem, config)},
    }
    if not _numbers(problem):
        by_means = tr.ProtoNet(problem.features(learner.model) or learner.model)
        found["class means"] = {"tasks": _scores(by_means.eval(), problem, config)}
    kernels = {"": None, "kernel ": tanimoto} if _has_fingerprints(config) else {"": None}
    for name, kernel in kernels.items():
        memory = tr.TaskMemory(learner, problem.loss_fn, kernel=kernel)
        remembering(memory, known, usual and usual.steps)
        found["left_out"] = memory.left_out
        if kernel is None:
            found["defaults"] = _by_memory(memory, problem, config)
        memory.tune(_validation(problem, config) if _has_fingerprints(config) else None)
        found[f"{name}tuned"] = _by_memory(memory, problem, config)
    return found


def _validation(problem: Problem, config: Config) -> tr.TaskBatch:
    """The validation assays, each with several draws of its shots."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    tasks = []
    for _ in range(VALIDATED):
        batch = problem.source.sample("validation", config.validation_tasks, generator)
        tasks += [(batch.support.real(i), batch.query.real(i)) for i in range(len(batch))]
    return tr.TaskBatch.from_tasks(tasks)


def said(run: dict[str, Any]) -> str:
    """The mean scores of a run."""
    means = {
        name: torch.tensor(part["tasks"]).nanmean().item()
        for name, part in run.items()
        if isinstance(part, dict) and "tasks" in part
    }
    return ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())


def tanimoto(a: Tensor, b: Tensor) -> Tensor:
    """How alike fingerprints are, of 0 and 1: the bits that two share over those that one of them has."""
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


def _has_fingerprints(config: Config) -> bool:
    """Whether inputs are bits, which a kernel may compare."""
    return config.problem.startswith("drugs/")


def _numbers(problem: Problem) -> bool:
    """Whether labels are numbers, and no classes."""
    return problem.loss_fn is not torch.nn.functional.cross_entropy


def _by_memory(memory: tr.TaskMemory, problem: Problem, config: Config) -> dict[str, Any]:
    settings = {**settings_of(memory), "kernel_scale": memory.kernel_scale}
    if memory.share == 0 or not _numbers(problem):
        return {"settings": settings, "tasks": _scores(memory, problem, config), "covered": None}
    banded = Banded(memory)
    scores = _scores(banded, problem, config)
    covered = float(torch.cat(banded.covered).mean())
    return {"settings": settings, "tasks": scores, "covered": covered}


def _scores(adapts: Any, problem: Problem, config: Config) -> list[float | None]:
    """By the problem's first metric; where test tasks are a finite set, the means over several draws."""
    draws = DRAWS if _has_fingerprints(config) else 1
    tasks, metric = config.test_tasks, problem.metrics[0].name
    found = [
        evaluate(adapts, problem, "test", tasks, FRESH_SEED + draw)[metric]["tasks"]
        for draw in range(draws)
    ]
    return short(torch.tensor(found, dtype=torch.float64).mean(0).tolist())
