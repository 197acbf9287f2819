"""What a memory of training tasks adds to a trained learner, by the protocol: with the softmax rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trlearner.experiments.data import files
from trlearner.experiments.evidence.cells import Cell
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import Memory
from trlearner.experiments.runs.build import make_problem
from trlearner.experiments.runs.evaluate import TEST_SEED, VALIDATION_SEED, evaluate
from trlearner.experiments.runs.recall import trained, training_tasks

import trlearner as tr

STEPS = (1, 10)
"""Tasks are remembered after so many times the learner's inner steps; validation tasks say which."""


def recall(
    config: Config, weights: Path, size: Memory, validated: int, data_dir: Path | None
) -> dict[str, Any]:
    """Test results of a trained learner with a memory, on the test tasks of its own run.

    Args:
        config: Of the run.
        weights: Its best ones.
        size: How many training tasks are remembered, and by how many samples each.
        validated: So many validation tasks tune the memory.
        data_dir: Where real data lies.
    """
    problem = make_problem(config, data_dir, "cpu")
    learner = trained(config, problem, torch.load(weights, weights_only=True), "cpu", "batched")
    training = training_tasks(config, size, data_dir, "cpu")
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
        size = Memory(cell.remembered, cell.samples)
        for arm, _, config, folder in cell.done(root):
            kept = arm != "paper" and (folder / "weights.pt").exists()
            if kept and not (folder / "recall.json").exists():
                found = recall(config, folder / "weights.pt", size, cell.validated, data_dir)
                files.write_json(folder / "recall.json", found)
                print(f"{cell.name}: share {found['share']}", flush=True)
