"""One learner alone, with TRLearner's term, and with a memory of its training tasks."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import mse_loss
from trlearner.experiments.demo.regression import Sinusoids, network

import trlearner as tr


@dataclass(frozen=True)
class Settings:
    """All that a run is made of; the defaults are the demo's.

    `inner_lr` and `inner_steps` were chosen for MAML alone; the demo's docstring has the numbers.
    """

    seeds: int = 3
    steps: int = 1200
    lam: float = 0.1
    tasks: int = 16
    pool: int = 480
    remembered: int = 300
    samples: int = 60
    shots: int = 5
    queries: int = 10
    inner_lr: float = 0.01
    inner_steps: int = 2
    outer_lr: float = 1e-3
    clip: float = 1.0
    dim: int = 32
    test_tasks: int = 500
    test_queries: int = 100


@dataclass(eq=False)
class Arm:
    """One side of the comparison.

    Attributes:
        name: For tables and legends.
        learner: Starts the same in all arms of a seed.
        regularizer: With ``lam=0`` it is the learner alone, to the last bit.
        optimizer: Trains both.
        seconds: What each meta-step took.
        clock: Says so.
    """

    name: str
    learner: tr.MAML
    regularizer: tr.TRLearner
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter

    def milliseconds(self) -> float:
        """The median time of a meta-step."""
        return 1000 * statistics.median(self.seconds)


Watch = Callable[[int, Sequence[Arm], Sequence[tr.Output]], None]
"""Called after every meta-step with its number from 1, the arms, and what each found."""


def train_arms(arms: Sequence[Arm], settings: Settings, seed: int, watch: Watch) -> None:
    """Any number of arms, on the same batches, one step each in turn."""
    generator = torch.Generator().manual_seed(seed)
    pool = Sinusoids.draw(settings.pool, generator)
    for step in range(1, settings.steps + 1):
        tasks = pool.sample(settings.tasks, generator)
        batch = tasks.batch(settings.shots, settings.queries, generator)
        watch(step, arms, [meta_step(arm, batch, settings.clip) for arm in arms])


def make_arm(name: str, settings: Settings, seed: int, lam: float, **options: Any) -> Arm:
    """A learner, its regularizer (with further options), and an optimizer for both."""
    learner = tr.MAML(
        network(seed), lr=settings.inner_lr, steps=settings.inner_steps, engine="batched"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = tr.LabelledEncoder(None, dim=settings.dim, features=1, targets=1)
    generator = torch.Generator().manual_seed(seed)
    regularizer = tr.TRLearner(encoder, lam=lam, loss_fn=mse_loss, generator=generator, **options)
    parameters = [*learner.parameters(), *regularizer.parameters()]
    return Arm(name, learner, regularizer, torch.optim.Adam(parameters, lr=settings.outer_lr))


def meta_step(arm: Arm, batch: tr.TaskBatch, clip: float) -> tr.Output:
    """One outer step of an arm, timed."""
    start = arm.clock()
    arm.optimizer.zero_grad()
    out: tr.Output = arm.regularizer(arm.learner, batch)
    out.loss.backward()
    # Apart, so that the relations' own gradients do not shrink the learner's.
    torch.nn.utils.clip_grad_norm_(arm.learner.parameters(), clip)
    torch.nn.utils.clip_grad_norm_(arm.regularizer.parameters(), clip)
    arm.optimizer.step()
    arm.seconds.append(arm.clock() - start)
    return out


def remembering(arm: Arm, settings: Settings, seed: int) -> tr.TaskMemory:
    """A memory of training tasks, each learned from many samples; the arm's learner predicts with it."""
    generator = torch.Generator().manual_seed(seed)
    known = Sinusoids.draw(settings.pool, generator)[: settings.remembered]
    half = settings.samples // 2
    memory = tr.TaskMemory(arm.learner, mse_loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model or two that are no good and left out
        memory.remember(known.batch(half, settings.samples - half, generator))
    return memory


@torch.no_grad()
def error_on(model: tr.MAML | tr.TaskMemory, test: tr.TaskBatch) -> float:
    """Mean squared error over all queries of all test tasks, after adaptation."""
    adapted = model.adapt(test.support, mse_loss)
    return float(mse_loss(adapted(test.query.x), test.query.y))
