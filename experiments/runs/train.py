"""One training run, from a config to a folder of results.

    python -m trlearner.experiments.runs.train CONFIG.json FOLDER

A run can be stopped at any moment, by Ctrl-C or by force. It goes on from its last checkpoint, and what it
finds is the same to the last bit as if it had never been stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trlearner.experiments.data import files
from trlearner.experiments.data.problem import Problem
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import checkpoint, interrupt
from trlearner.experiments.runs.build import (
    ASKED,
    CANDIDATES,
    make_learner,
    make_problem,
    make_regularizer,
    make_sampler,
)
from trlearner.experiments.runs.evaluate import TEST_SEED, VALIDATION_SEED, evaluate
from trlearner.experiments.runs.events import Events
from trlearner.experiments.runs.trivial import trivial

import trlearner as tr

Watch = Callable[[int, str], None]
"""Told after every meta-step: its number from 1, and how things stand."""


class Run:
    """What changes during training; all of it is in a checkpoint."""

    def __init__(self, config: Config, problem: Problem, device: str, engine: str) -> None:
        torch.manual_seed(config.seed)
        self.config, self.problem = config, problem
        self.learner = make_learner(config, problem, engine).to(device)
        self.sampler = make_sampler(config, problem, self.learner)
        self.regularizer = make_regularizer(config, problem, self.learner, device, self.sampler).to(
            device
        )
        # Validates and tests with weights of its own, and leaves no trace in the random state.
        with torch.random.fork_rng():
            self.judge = make_learner(config, problem, "auto").to(device).eval()
        trained = [*self.learner.parameters(), *self.regularizer.parameters()]
        self.optimizer = torch.optim.Adam(trained, lr=config.outer_lr)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.draws: Iterator[list[Any]] = iter(())
        self.step = 0
        self.skipped = 0
        self.engine = engine  # becomes the one that ran
        self.average = _copy(self.learner.state_dict()) if config.average else {}
        self.best: dict[str, Any] = {
            "step": 0,
            "score": None,
            "weights": _copy(self.learner.state_dict()),
        }
        self.history: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.monitor: tr.RelationMonitor | None = None
        self.seen: dict[str, Any] = {}  # by the monitor of a run that was stopped

    def watch(self, monitor: tr.RelationMonitor) -> None:
        """Shows every step from now on to a monitor, which goes on from what an earlier one saw."""
        if self.seen:
            monitor.load_state_dict(self.seen)
        self.monitor = self.regularizer.monitor = monitor

    def take_step(self) -> None:
        """One outer step on fresh tasks."""
        config = self.config
        batch = self._draw()
        self.optimizer.zero_grad()
        out: tr.Output = self.regularizer(self.learner, batch)
        out.loss.backward()
        # Apart, so that the relations' own gradients do not shrink the learner's.
        norms = [
            nn.utils.clip_grad_norm_(module.parameters(), config.clip or math.inf)
            for module in (self.learner, self.regularizer)
        ]
        if all(norm.isfinite() for norm in norms):
            self.optimizer.step()
        else:  # an inner loop that exploded once would be the end of all weights
            self.skipped += 1
        self.step += 1
        self.engine = self.learner.engine = out.engine
        if self.average:
            for name, value in self.learner.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - config.average)

    def _draw(self) -> tr.TaskBatch:
        """The training tasks of a step: uniformly drawn, or as the sampler wants them."""
        source, tasks = self.problem.source, self.config.tasks
        if self.sampler is None:
            return source.sample("train", tasks, self.generator)
        if self.sampler.task_ids is None:
            candidates = source.sample("train", CANDIDATES * tasks, self.generator)
            return self.sampler.reweight(candidates, self.learner)
        names = next(self.draws, None)
        if names is None:  # one epoch is over, or none has begun
            self.draws = iter(self.sampler)
            names = next(self.draws)
        return source.pick(names, self.generator)  # type: ignore[attr-defined]

    def validate(self) -> dict[str, float]:
        """Every metric on the validation tasks; keeps the weights if they are the best so far."""
        weights = _copy(self.average or self.learner.state_dict())
        self.judge.load_state_dict(weights)
        tasks = self.config.validation_tasks
        found = evaluate(self.judge, self.problem, "validation", tasks, VALIDATION_SEED)
        metric = self.problem.metrics[0]
        values = {name: part["summaries"] for name, part in found.items()}
        score = next(iter(values[metric.name].values()))
        sign = 1 if metric.better == "higher" else -1
        first = self.best["score"] is None or not math.isfinite(self.best["score"])
        if first or sign * score > sign * self.best["score"]:
            self.best = {"step": self.step, "score": score, "weights": weights}
        self.history.append({"step": self.step, "validation": values})
        return {f"{name}/{s}": v for name, part in values.items() for s, v in part.items()}

    def out_of_patience(self) -> bool:
        """Whether the last validations brought nothing better."""
        waited = (self.step - self.best["step"]) // self.config.validate_every
        return 0 < self.config.patience <= waited

    def result(self) -> dict[str, Any]:
        """What the best weights do on test tasks."""
        self.judge.load_state_dict(self.best["weights"])
        splits = [s for s in ("test", "shifted") if s in self.problem.source.splits]
        found: dict[str, dict[str, Any]] = {split: {} for split in splits}
        for split, by_steps in found.items():
            for steps in self.config.test_steps or (self.judge.steps,):
                by_steps[str(steps)] = evaluate(
                    self.judge, self.problem, split, self.config.test_tasks, TEST_SEED, steps
                )
        metric = self.problem.metrics[0]
        device = str(self.generator.device)
        tasks, batch = self.config.test_tasks, self.config.tasks
        return {
            "config": self.config.record(),
            "hash": self.config.hash(),
            "metric": metric.name,
            "better": metric.better,
            "best_step": self.best["step"],
            "steps": self.step,
            "skipped": self.skipped,
            **found,
            "trivial": {s: trivial(self.problem, s, tasks, batch, device) for s in splits},
        }

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "config": self.config.record(),
            "learner": self.learner.state_dict(),
            "regularizer": self.regularizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "step": self.step,
            "skipped": self.skipped,
            "engine": self.engine,
            "average": self.average,
            "best": self.best,
            "history": self.history,
            "seconds": self.seconds,
            "seen": self.seen if self.monitor is None else self.monitor.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self.learner.load_state_dict(state["learner"])
        self.regularizer.load_state_dict(state["regularizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])
        torch.set_rng_state(state["random"].cpu())
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        self.engine = self.learner.engine = state["engine"]
        for name in ("step", "skipped", "average", "best", "history", "seconds", "seen"):
            setattr(self, name, state.get(name, getattr(self, name)))  # some came later


def run(
    config: Config,
    folder: Path,
    *,
    data_dir: Path | None = None,
    device: str = "cpu",
    engine: str = "auto",
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Trains and tests; returns the result, which is in the folder as well.

    Args:
        config: All that the result depends on.
        folder: Where it goes. A run that is finished there is not repeated; one that was stopped goes on.
        data_dir: Where real data lies.
        device: Where to run.
        engine: How to run.
        watch: Told after every step.
    """
    done = folder / "result.json"
    if done.exists():
        return files.read_json(done)
    with torch.random.fork_rng():
        problem = make_problem(config, data_dir, device)
        now = _ready(config, problem, device, engine)
        stored = checkpoint.load(folder / "checkpoint.pt", config, device)
        if stored is not None:
            now.load(stored)
        # Only now, so that a run that cannot begin leaves nothing.
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "config.json", config.record())
        _train(now, folder, watch or (lambda step, note: None))
        result = now.result()
    checkpoint.save(folder / "weights.pt", now.best["weights"])
    files.write_json(folder / "timing.json", _timing(now.seconds, now.engine))
    files.write_json(done, result)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def rehearse(configs: Sequence[Config], data_dir: Path | None, engine: str) -> None:
    """Makes all that the runs begin with, so that a mistake is found before the first one.

    Raises:
        ValueError: One of them cannot begin.
        MissingData: Data is not there.
    """
    made: dict[str, Problem] = {}
    with torch.random.fork_rng():
        for config in {replace(config, seed=0).hash(): config for config in configs}.values():
            of_problem = {name: config.record()[name] for name in ("problem", *ASKED)}
            key = json.dumps(of_problem, sort_keys=True)
            if key not in made:
                made[key] = make_problem(config, data_dir, "cpu")
            _ready(config, made[key], "cpu", engine)


def _ready(config: Config, problem: Problem, device: str, engine: str) -> Run:
    """A run that has drawn a batch for trial: too many tasks are found here, not in the first step."""
    problem.source.sample("train", config.tasks, torch.Generator(device).manual_seed(0))
    return Run(config, problem, device, engine)


def _train(now: Run, folder: Path, watch: Watch) -> None:
    """All steps that are left; seconds each."""
    config = now.config
    with Events(folder, config, now.step) as events:
        now.watch(events.monitor)
        whole = True
        try:
            while now.step < config.steps and not now.out_of_patience():
                # Half a step is nothing to go on from.
                with interrupt.held_back():
                    whole = False
                    started = time.perf_counter()
                    now.take_step()
                    now.seconds.append(time.perf_counter() - started)
                    if now.step % config.validate_every == 0 or now.step == config.steps:
                        events.validation(now.step, now.validate())
                        # In this order: a checkpoint of the last step is never ahead of its metrics.
                        files.write_lines(folder / "metrics.jsonl", now.history)
                        checkpoint.save(folder / "checkpoint.pt", now.state())
                    whole = True
                watch(now.step, f"{1000 * now.seconds[-1]:.1f} ms a step")
        except KeyboardInterrupt:
            if whole:
                checkpoint.save(folder / "checkpoint.pt", now.state())
            raise
        events.finish(now.best["score"])


def _timing(seconds: list[float], engine: str) -> dict[str, Any]:
    each = statistics.median(seconds) if seconds else None
    return {"seconds_per_step": each, "total_seconds": sum(seconds), "engine": engine}


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The run of a config in a file; for workers of a sweep."""
    parser = argparse.ArgumentParser(prog="trlearner.experiments.runs.train")
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto")
    options = vars(parser.parse_args(arguments))
    config = Config.read(files.read_json(options.pop("config")))
    torch.set_num_threads(1)
    run(config, **options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
