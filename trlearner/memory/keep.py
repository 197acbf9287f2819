"""Which models are remembered: those that are sound."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trlearner.collected_models import Predict
from trlearner.engines.adapted import Adapted
from trlearner.learners.protocol import Learner
from trlearner.memory import guard
from trlearner.memory.labels import Labels
from trlearner.memory.remembered import Remembered, finite
from trlearner.memory.stop import learn
from trlearner.samples import Samples
from trlearner.types import LossFn


class Kept(NamedTuple):
    """What is to be remembered of some tasks."""

    tasks: Tensor  # which of them [tasks]
    labels: Labels  # of all tasks remembered so far
    left_out: dict[str, int]  # how many tasks are not, by reason

    def with_others(self, left_out: dict[str, int]) -> dict[str, int]:
        """How many of these tasks and of others are left out, by reason."""
        return {n: left_out.get(n, 0) + self.left_out.get(n, 0) for n in left_out | self.left_out}


def learned(
    learner: Learner,
    samples: Samples,
    loss_fn: LossFn,
    steps: int,
    held_out: float,
    labels: Labels,
    size: int,
) -> tuple[Adapted, Kept]:
    """Adapts to known tasks: all models, and which are sound.

    Args:
        learner: Adapts.
        samples: All samples of the tasks.
        loss_fn: For one task.
        steps: The most inner steps.
        held_out: The share of samples that is held out; 0 for none, and models that are finite are sound.
        labels: Of the tasks remembered before.
        size: So many models are asked at once.

    Raises:
        ValueError: No model is sound.
    """
    models, answers, held, seen = learn(learner, samples, loss_fn, steps, held_out)
    labels = labels.with_these(samples)
    faults = {guard.NOT_FINITE: ~finite(models.fast)}
    if answers is not None:
        those = Remembered(models.fast, models.state)
        faults[guard.WORSE] = guard.worse(answers, held, seen, labels)
        faults[guard.OUTSIDE] = guard.outside(
            lambda probes: those.say(models, probes, size), samples, labels
        )
    advice = f"Take fewer than steps={steps}, or a lower inner learning rate."
    tasks, left_out = guard.sort_out(faults, advice)
    return models, Kept(tasks, labels, left_out)


def sound(
    models: list[Predict], samples: Samples, labels: Labels, together: bool, size: int
) -> Kept:
    """Which callables are sound, judged by all samples of their tasks.

    Args:
        models: One for each task.
        samples: All samples of the tasks.
        labels: Of the tasks remembered before.
        together: Ask each callable once for all tasks' samples.
        size: So many models are asked at once.

    Raises:
        ValueError: No model is sound.
    """
    those = Remembered(callables=models, together=together)
    itself = torch.arange(len(models), device=samples.x.device)[:, None]
    answers = those.say_chosen(None, samples, itself, size)[:, 0]
    labels = labels.with_these(samples)
    faults = {guard.NOT_FINITE: ~answers.reshape(len(models), -1).isfinite().all(1)}
    if samples.y.is_floating_point():
        faults[guard.WORSE] = guard.worse(answers, samples, samples, labels)
        faults[guard.OUTSIDE] = guard.outside(
            lambda probes: those.say(None, probes, size), samples, labels
        )
    tasks, left_out = guard.sort_out(faults, "Look at how they were adapted.")
    return Kept(tasks, labels, left_out)
