"""One learner of the demo: trained, and given a memory where it is trained alone.

It is a module of its own, so that another process can find it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from trlearner.experiments.demo import comparison
from trlearner.experiments.demo.comparison import Arm, Settings, Watch
from trlearner.experiments.demo.log import Log
from trlearner.experiments.demo.regression import Sinusoids
from trlearner.experiments.demo.workers import Tell

import trlearner as tr

TEST_SEED = 1_000_000
"""The test tasks are the same for every seed and arm, and no training seed comes near."""

ARMS = ("MAML", "MAML + TRLearner")
MEMORY = "MAML + memory"


class Job(NamedTuple):
    """One learner to train."""

    seed: int
    name: str
    settings: Settings
    out: Path


class Made(NamedTuple):
    """What a job made.

    Attributes:
        errors: On the test tasks, by name: the learner's, and that of its memory.
        milliseconds: The median time of a meta-step.
        weights: The states of learner, regularizer and memory; bytes, for they come from another process.
    """

    errors: dict[str, float]
    milliseconds: float
    weights: bytes


def work(job: Job, tell: Tell) -> Made:
    """Trains one learner, and gives the one that is trained alone a memory."""
    settings, seed, name = job.settings, job.seed, job.name
    arm = make_arm(settings, seed, name)
    _, test = test_tasks(settings)
    states = {}
    with Log(job.out / "tensorboard") as log:
        if arm.regularizer.lam:
            arm.regularizer.monitor = tr.RelationMonitor(log.writer(run_name(seed, name)))
        comparison.train_arms([arm], settings, seed, watcher(settings, seed, test, log, tell))
    errors = {name: comparison.error_on(arm.learner, test)}
    if not arm.regularizer.lam:
        memory = comparison.remembering(arm, settings, seed)
        errors[MEMORY] = comparison.error_on(memory, test)
        states["memory"] = memory.state_dict()
    states |= {"learner": arm.learner.state_dict(), "regularizer": arm.regularizer.state_dict()}
    file = io.BytesIO()
    torch.save(states, file)
    return Made(errors, arm.milliseconds(), file.getvalue())


def make_arm(settings: Settings, seed: int, name: str) -> Arm:
    """A learner as training begins."""
    return comparison.make_arm(name, settings, seed, lam=settings.lam if name == ARMS[1] else 0.0)


def test_tasks(settings: Settings) -> tuple[Sinusoids, tr.TaskBatch]:
    """Curves that nobody was trained on, and points of them."""
    generator = torch.Generator().manual_seed(TEST_SEED)
    curves = Sinusoids.draw(settings.test_tasks, generator)
    return curves, curves.batch(settings.shots, settings.test_queries, generator)


def watcher(settings: Settings, seed: int, test: tr.TaskBatch, log: Log, tell: Tell) -> Watch:
    """Writes the curves of a learner and tells how far it is."""
    every = max(1, settings.steps // 20)

    def watch(step: int, arms: Sequence[Arm], outs: Sequence[tr.Output]) -> None:
        [arm], [out] = arms, outs
        values = {"loss/task": float(out.task_loss)} if step % 10 == 0 else {}
        if step % every == 0 or step == settings.steps:
            values["test/mse"] = comparison.error_on(arm.learner, test)
        log.scalars(run_name(seed, arm.name), step, values)
        tell(seed, step, f"{arm.name}, {1000 * arm.seconds[-1]:.1f} ms a step")

    return watch


def run_name(seed: int, name: str) -> str:
    """The TensorBoard run of an arm, e.g. ``seed0-maml``."""
    return f"seed{seed}-{'maml' if name == ARMS[0] else 'trlearner'}"
