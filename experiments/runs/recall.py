"""What a memory of training tasks adds to a trained learner, on the test tasks of the learner's own run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trlearner.experiments.data import files
from trlearner.experiments.data.problem import Finite, Problem
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import Memory, presets
from trlearner.experiments.runs import train
from trlearner.experiments.runs.build import make_learner, make_problem
from trlearner.experiments.runs.evaluate import TEST_SEED, evaluate

import trlearner as tr

MEMORY_SEED = 3_000_000
"""Of the samples that training tasks are remembered by."""

COVERAGE = "coverage"
"""The metric that says which share of a task's labels lies in the memory's 95 % band."""

RESULT = "memory.json"
"""A run with a memory ends with this file, as one without ends with ``result.json``."""


def memory_of(problem: str) -> Memory:
    """What a memory of this problem holds, by its preset.

    Raises:
        ValueError: Training tasks of this problem say nothing of new ones.
    """
    found = presets()[problem].memory
    if found is None:
        raise ValueError(
            f"{problem} has no memory: its classes change from task to task, so that remembered models "
            "would only harm. Run it without --memory."
        )
    return found


def run(
    config: Config,
    folder: Path,
    *,
    data_dir: Path | None = None,
    device: str = "cpu",
    engine: str = "auto",
    watch: train.Watch | None = None,
) -> dict[str, Any]:
    """Trains and tests as `train.run`; then remembers training tasks and tests with them.

    A finished run is not trained again: the memory is made of its weights.

    Args:
        config: As of `train.run`.
        folder: As of `train.run`; the memory's settings and results go into its ``memory.json``.
        data_dir: As of `train.run`.
        device: As of `train.run`.
        engine: As of `train.run`.
        watch: As of `train.run`.

    Returns:
        The run's result, with that of the memory as ``memory``.

    Raises:
        ValueError: The problem has no memory, or the run's weights are gone.
    """
    done, size = folder / RESULT, memory_of(config.problem)
    how: dict[str, Any] = {"data_dir": data_dir, "device": device, "engine": engine}
    if done.exists():
        result = train.run(config, folder, **how, watch=watch)
        return {**result, "memory": files.read_json(done)}
    # Before training, so that nothing is trained for a memory that cannot be made.
    known = training_tasks(config, size, data_dir, device)
    result = train.run(config, folder, **how, watch=watch)
    weights = _weights(folder / "weights.pt", device)
    print(f"Remembering {len(known)} training tasks...", flush=True)
    memory = recall(config, weights, known, size.steps, data_dir, device)
    files.write_json(done, memory)
    return {**result, "memory": memory}


def recall(
    config: Config,
    weights: dict[str, Tensor],
    known: tr.TaskBatch,
    steps: int | None,
    data_dir: Path | None,
    device: str,
) -> dict[str, Any]:
    """Remembers tasks, tunes the memory by leave-one-out, and tests it.

    Args:
        config: Of the run.
        weights: Its best ones.
        known: Training tasks.
        steps: As of `TaskMemory.remember`.
        data_dir: Where real data lies.
        device: Where to run.

    Returns:
        What was remembered, the tuned settings, and results by split as in ``result.json``.
    """
    problem = make_problem(config, data_dir, device)
    learner = trained(config, problem, weights, device)
    memory = remembering(tr.TaskMemory(learner, problem.loss_fn), known, steps)
    tuned = memory.tune()
    metric = problem.metrics[0]
    splits = [split for split in ("test", "shifted") if split in problem.source.splits]
    return {
        "hash": config.hash(),
        "metric": metric.name,
        "better": metric.better,
        "tasks": len(memory),
        "left_out": memory.left_out,
        "samples": known.support.x.shape[1] + known.query.x.shape[1],
        "steps": steps,
        "rule": memory.rule,
        **settings_of(memory),
        "tuned": {"loss": tuned.loss, "alone": tuned.alone},
        **{split: _by_steps(memory, problem, split, config) for split in splits},
    }


def remembering(memory: tr.TaskMemory, known: tr.TaskBatch, steps: int | None) -> tr.TaskMemory:
    """The memory, once it has the tasks; `left_out` counts what others would be warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* models are not remembered")
        memory.remember(known, steps=steps)
    return memory


def settings_of(memory: tr.TaskMemory) -> dict[str, Any]:
    """What `tune` chooses, as JSON has it."""
    noise = memory.noise.tolist() if isinstance(memory.noise, Tensor) else memory.noise
    names = ("share", "neighbours", "spread")
    return {name: getattr(memory, name) for name in names} | {"noise": noise}


def training_tasks(
    config: Config, size: Memory, data_dir: Path | None, device: str
) -> tr.TaskBatch:
    """Training tasks of a run, with as many samples as are remembered; all tasks, if there are no more."""
    samples = min(size.samples, config.pool or size.samples)
    queries = max(config.queries, samples - config.shots)
    source = make_problem(replace(config, queries=queries), data_dir, device).source
    names = source.names if isinstance(source, Finite) else None
    tasks = size.tasks if names is None else min(size.tasks, len(names))
    return source.sample("train", tasks, torch.Generator(device).manual_seed(MEMORY_SEED))


def trained(
    config: Config, problem: Problem, weights: dict[str, Tensor], device: str, engine: str = "auto"
) -> tr.Learner:
    """The learner of a run with these weights, in evaluation mode."""
    with torch.random.fork_rng():
        learner = make_learner(config, problem, engine).to(device).eval()
    learner.load_state_dict(weights)
    return learner


def _weights(path: Path, device: str) -> dict[str, Tensor]:
    if not path.exists():
        raise ValueError(
            f"{path} is gone, and a memory is made of these weights. Remove result.json beside it to train "
            "this run again, or choose another --out."
        )
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location=device, weights_only=True)
    except Exception:
        # torch's own text advises to execute what is in the file.
        raise ValueError(
            f"{path} is damaged. Remove it and result.json beside it to train this run again."
        ) from None
    return weights


def _by_steps(
    memory: tr.TaskMemory, problem: Problem, split: Any, config: Config
) -> dict[str, dict[str, Any]]:
    """Every metric on a split, and how many labels the bands cover, by the number of inner steps."""
    found: dict[str, dict[str, Any]] = {}
    for steps in config.test_steps or (memory.learner.steps,):
        judged = Banded(memory) if memory.share else memory  # own models have no band
        found[str(steps)] = evaluate(judged, problem, split, config.test_tasks, TEST_SEED, steps)
        if isinstance(judged, Banded):
            each = torch.cat(judged.covered).double()
            summaries = {"mean": float(each.mean())}
            found[str(steps)][COVERAGE] = {"summaries": summaries, "tasks": each.tolist()}
    return found


class Banded:
    """Answers as a memory does, and notes how many labels lie in its 95 % band.

    Args:
        memory: Answers, with a share above 0.

    Attributes:
        covered: The share of each task's labels, one tensor ``[tasks]`` for each answer.
    """

    def __init__(self, memory: tr.TaskMemory) -> None:
        self.memory = memory
        self.covered: list[Tensor] = []

    def adapt(
        self, support: tr.Samples, loss_fn: tr.types.LossFn, *, steps: int | None = None
    ) -> Callable[[tr.Samples], Tensor]:
        """As of the memory."""
        answer = self.memory.adapt(support, loss_fn, steps=steps)

        def predict(query: tr.Samples) -> Tensor:
            mean, deviation = answer(query, std=True)
            inside = ((mean - query.y).abs() <= 1.96 * deviation).double()
            real = query.is_real()
            each = inside.unsqueeze(-1).flatten(2).mean(2) * real
            self.covered.append((each.sum(1) / real.sum(1)).cpu())
            return mean

        return predict

    def parameters(self) -> Iterator[Tensor]:
        """The learner's."""
        return self.memory.parameters()
