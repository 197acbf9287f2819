"""The same learner trained on tasks that different samplers draw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from trlearner.experiments.evidence.sampler.planted import SETS, Planted

import trlearner as tr

ARMS = ("uniform", "hard", "adaptive", "adaptive, held out")


@dataclass(frozen=True)
class Settings:
    """Of every run; the learner's were chosen with uniform draws."""

    steps: int | None = None  # the set's own
    tasks: int = 8
    judges: int = 24
    inner_steps: int = 3
    outer_lr: float = 2e-3
    clip: float = 1.0
    average: float = 0.99
    warmup: int = 30
    every: int = 1
    scores: tuple[str, ...] = ("diversity", "entropy", "difficulty", "compactness", "separability")


def sampler_of(
    arm: str, planted: Planted, settings: Settings, seed: int, model: nn.Module
) -> tr.samplers.TaskSampler:
    """The sampler of one arm, with the seed's draws."""
    ids = range(len(planted.pool))
    generator, judges = (torch.Generator().manual_seed(seed) for _ in range(2))

    def held_out() -> tr.TaskBatch:
        some = torch.randperm(len(planted.held_out), generator=judges)
        return planted.held_out[some[: settings.judges]]

    if arm == "uniform":
        return tr.samplers.UniformTaskSampler(ids, settings.tasks, generator=generator)
    if arm == "hard":
        return tr.samplers.HardTaskSampler(
            ids, settings.tasks, warmup=settings.warmup, every=settings.every, generator=generator
        )
    return tr.AdaptiveTaskSampler(
        ids,
        settings.tasks,
        warmup=settings.warmup,
        every=settings.every,
        scores=settings.scores,
        extractor=model.features,
        held_out=held_out if arm == "adaptive, held out" else None,
        generator=generator,
    )


def run(kind: str, arm: str, seed: int, settings: Settings) -> dict:
    """One run: the test loss of averaged weights, and what a marked task weighs for one that is not."""
    planted = SETS[kind](seed)
    steps = settings.steps or planted.steps
    torch.manual_seed(seed)
    learner = tr.MAML(
        planted.model(), lr=planted.inner_lr, steps=settings.inner_steps, engine="batched"
    )
    sampler = sampler_of(arm, planted, settings, seed, learner.model)
    optimizer = torch.optim.Adam(learner.parameters(), lr=settings.outer_lr)
    mean = AveragedModel(learner.model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    ratios, started = [], time.perf_counter()
    for step, ids in enumerate(itertools.islice(endless(sampler), steps)):
        batch = planted.pool[ids]
        optimizer.zero_grad()
        losses(learner, batch, planted).mean().backward()
        sampler.update(learner, batch, reuse=True)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), settings.clip)
        optimizer.step()
        mean.update_parameters(learner.model)
        if step >= steps // 2:
            w = sampler.weights
            ratios.append(w[planted.marked].mean() / w[~planted.marked].mean())
    seconds = time.perf_counter() - started
    learner.model.load_state_dict(mean.module.state_dict())
    with torch.no_grad():
        test = losses(learner, planted.test, planted).mean().item()
    ratio = torch.stack(ratios).mean().item()
    return {
        "set": kind,
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "test_loss": test,
        "ratio": ratio,
        "seconds": round(seconds, 2),
    }


def losses(learner: tr.Learner, batch: tr.TaskBatch, planted: Planted) -> torch.Tensor:
    """Each task's loss on its queries."""
    answers = learner.adapt(batch.support, planted.loss_fn)(batch.query.x)
    return torch.vmap(planted.loss_fn)(answers, batch.query.y)


def endless(sampler: tr.samplers.TaskSampler) -> Iterator[list]:
    """Epoch after epoch."""
    while True:
        yield from sampler


def compare(seeds: Sequence[int], settings: Settings, kinds: Sequence[str]) -> Iterator[dict]:
    """Every set, arm and seed in turn."""
    for kind, seed, arm in itertools.product(kinds, seeds, ARMS):
        yield run(kind, arm, seed, settings)
