"""Known tasks are learned until their own held-out samples stop improving."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from trlearner.base.types import Fast, LossFn
from trlearner.engines.adapted import Adapted, adapt
from trlearner.engines.choose import without_graph
from trlearner.learners.protocol import Learner
from trlearner.memory.known import held_out
from trlearner.tasks.rows import part_of
from trlearner.tasks.samples import Samples

STEPS = 300
"""So many inner steps are the most, by default, for tasks with numbers for labels."""

STOPS = (1, 5, 20, 50, 100)
"""Each task stops after as many steps, or all of them, as its held-out samples are predicted best with."""

TOGETHER = 512
"""So many tasks are learned at once."""


class Learned(NamedTuple):
    """What became of known tasks."""

    models: Adapted  # one for each task
    answers: (
        Tensor | None
    )  # to held-out samples [tasks, samples, ...], before these were learned from
    held: Samples  # these; all samples, where tasks have too few
    learned: Samples  # what models had learned from when they answered


def learn(learner: Learner, samples: Samples, loss_fn: LossFn, steps: int, share: float) -> Learned:
    """Adapts to known tasks.

    With a `share` above 0, each task stops where the loss of its held-out samples is least, and then learns
    again from all of its samples with as many steps. Of the two models it keeps the one with the lower loss
    on all samples.

    Args:
        learner: Adapts.
        samples: All samples of each task.
        loss_fn: For one task.
        steps: The most inner steps.
        share: Of each task's samples, to be held out; 0 for none, and all steps.
    """
    if not share:
        chunks = _chunks(samples)
        models = [_adapted(learner, some, loss_fn, steps) for some in chunks]
        return Learned(_joined(models), None, samples, samples)
    parts = held_out(samples, share)
    learned, held = parts or (samples, samples)
    stops = [*(stop for stop in STOPS if stop < steps), steps]
    models, answers = [], []
    for whole, some, judged in zip(*map(_chunks, (samples, learned, held)), strict=True):
        best, said, chosen = _until_best(learner, some, judged, loss_fn, stops)
        models.append(best if parts is None else _again(best, whole, loss_fn, chosen))
        answers.append(said)
    return Learned(_joined(models), torch.cat(answers), held, learned)


def _adapted(learner: Learner, samples: Samples, loss_fn: LossFn, steps: int) -> Adapted:
    """As `Learner.adapt`, without a graph: it would be made anew for each number of steps."""
    engine = without_graph(learner.engine_for(samples, loss_fn))
    return adapt(engine, learner, learner.state(), samples, loss_fn, steps).dense()


def _chunks(samples: Samples) -> list[Samples]:
    return [samples[i : i + TOGETHER] for i in range(0, len(samples), TOGETHER)]


def _joined(models: list[Adapted]) -> Adapted:
    fast = {name: torch.cat([m.fast[name] for m in models]) for name in models[0].fast}
    return replace(models[0], fast=fast)


def _until_best(
    learner: Learner, learned: Samples, held: Samples, loss_fn: LossFn, stops: list[int]
) -> tuple[Adapted, Tensor, Tensor]:
    """The best models, their answers to held-out samples, and the steps ``[tasks]`` of each."""
    best, answers, least, chosen = None, None, None, None
    for steps in stops:
        models = _adapted(learner, learned, loss_fn, steps)
        said = models(held)
        losses = models.losses(loss_fn, said, held).nan_to_num(nan=torch.inf)
        if best is None or answers is None or least is None or chosen is None:
            best, answers, least = dict(models.fast), said, losses
            chosen = torch.full((len(held),), steps, device=said.device)
            continue
        better = losses < least
        best = {name: _where(better, models.fast[name], t) for name, t in best.items()}
        answers, least = _where(better, said, answers), losses.minimum(least)
        chosen = torch.where(better, steps, chosen)
    assert best is not None and answers is not None and chosen is not None
    return replace(models, fast=best), answers, chosen


def _again(models: Adapted, samples: Samples, loss_fn: LossFn, chosen: Tensor) -> Adapted:
    """Models that learned from all samples, where these do better on all samples."""
    learner = models.learner
    assert isinstance(learner, Learner)
    before = models.losses(loss_fn, models(samples), samples)
    fast: Fast = models.fast
    for steps in chosen.unique().tolist():
        tasks = (chosen == steps).nonzero().flatten()
        again = _adapted(learner, samples[tasks], loss_fn, steps)
        after = again.losses(loss_fn, again(samples[tasks]), samples[tasks])
        better = after < before[tasks]
        fast = {
            name: t.index_copy(0, tasks, _where(better, again.fast[name], t[tasks]))
            for name, t in part_of(fast, slice(None)).items()
        }
    return replace(models, fast=fast)


def _where(choice: Tensor, these: Tensor, those: Tensor) -> Tensor:
    """Task by task ``[tasks, ...]``."""
    return torch.where(choice.reshape(-1, *[1] * (these.ndim - 1)), these, those)
