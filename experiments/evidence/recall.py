"""What a memory of training tasks adds to a trained learner, by the protocol: with the softmax rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trlearner.experiments import checkpoint
from trlearner.experiments.build import make_learner, make_problem
from trlearner.experiments.config import Config
from trlearner.experiments.evaluate import TEST_SEED, VALIDATION_SEED, evaluate
from trlearner.experiments.evidence.cells import Cell

import trlearner as tr

MEMORY_SEED = 3_000_000
"""Of the samples that training tasks are remembered by."""

STEPS = (1, 10)
"""Tasks are remembered after so many times the learner's inner steps; validation tasks say which."""


def recall(
    config: Config, weights: Path, tasks: int, samples: int, validated: int, data_dir: Path | None
) -> dict[str, Any]:
    """Test results of a trained learner with a memory, on the test tasks of its own run.

    Args:
        config: Of the run.
        weights: Its best ones.
        tasks: So many training tasks are remembered.
        samples: Of each of them.
        validated: So many validation tasks tune the memory.
        data_dir: Where real data lies.
    """
    problem = make_problem(config, data_dir, "cpu")
    known = make_problem(replace(config, queries=samples - config.shots), data_dir, "cpu")
    learner = make_learner(config, problem, "batched").eval()
    learner.load_state_dict(torch.load(weights, weights_only=True))
    training = known.source.sample("train", tasks, torch.Generator().manual_seed(MEMORY_SEED))
    validation = problem.source.sample(
        "validation", validated, torch.Generator().manual_seed(VALIDATION_SEED)
    )
    tried = []
    for times in STEPS:
        memory = tr.TaskMemory(learner, problem.loss_fn, rule="softmax")
        memory.remember(training, steps=times * learner.steps, held_out=0.0)
        tried.append((memory.tune(validation).loss, times, memory))
    loss, times, memory = min(tried, key=lambda one: one[0])
    found = evaluate(memory, problem, "test", config.test_tasks, TEST_SEED)
    return {
        "steps": times * learner.steps,
        "share": memory.share,
        "temperature": memory.temperature,
        "validation": loss,
        "test": found,
    }


def recall_all(cells: Sequence[Cell], root: Path, data_dir: Path | None) -> None:
    """For every run that the table compares with a memory, and that kept its weights: ``recall.json``."""
    for cell in cells:
        for arm, _, config, folder in cell.done(root):
            kept = arm != "paper" and (folder / "weights.pt").exists()
            if kept and not (folder / "recall.json").exists():
                found = recall(
                    config,
                    folder / "weights.pt",
                    cell.remembered,
                    cell.samples,
                    cell.validated,
                    data_dir,
                )
                checkpoint.write_json(folder / "recall.json", found)
                print(f"{cell.name}: share {found['share']}", flush=True)
