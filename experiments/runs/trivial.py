"""What answers without looking at a query: the least that a learner has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from trlearner.experiments.data.problem import Problem, Split
from trlearner.experiments.runs.evaluate import DRAWN, TEST_SEED, VALIDATION_SEED, evaluate

import trlearner as tr

Answer = Callable[[tr.Samples], Tensor]


class Constant(nn.Module):
    """One answer to every query of every task.

    Args:
        value: Without the axes of tasks and queries.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=False)

    def adapt(self, support: tr.Samples, *_: Any, **__: Any) -> Answer:
        """As a learner's, but for that nothing is learnt."""
        return lambda query: self.value.expand(*query.y.shape[:2], *self.value.shape)


class SupportMean(nn.Module):
    """To every query of a task the mean target of its support."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)

    def adapt(self, support: tr.Samples, *_: Any, **__: Any) -> Answer:
        """As a learner's."""
        means = _mean(support, tasks=False)[:, None]
        return lambda query: means.expand_as(query.y)


def trivial(
    problem: Problem, split: Split, tasks: int, batch: int, device: str
) -> dict[str, dict[str, dict[str, float]]]:
    """How well simple answers do on the tasks that a result is of.

    Args:
        problem: Draws the tasks and judges the answers.
        split: Which tasks.
        tasks: How many.
        batch: So many training tasks are drawn at once.
        device: Where tasks are.

    Returns:
        The summaries of every metric, by answer: for classes, ``chance``; for numbers, ``constant``, the mean
        target of training tasks, and ``support mean``, that of each task's own support.
    """
    generator = torch.Generator(device).manual_seed(VALIDATION_SEED)
    first = problem.source.sample("train", batch, generator)
    answers: dict[str, nn.Module] = {}
    if first.support.y.is_floating_point():
        draws = [
            problem.source.sample("train", batch, generator) for _ in range(-(-DRAWN // batch))
        ]
        mean = torch.stack([_mean(one.support, tasks=True) for one in draws]).mean(0)
        answers["constant"] = Constant(mean)
        answers["support mean"] = SupportMean(first.support.y.device)
    else:
        answers["chance"] = Constant(torch.zeros(first.ways or 1, device=first.support.y.device))
    return {
        name: {
            metric: found["summaries"]
            for metric, found in evaluate(answer, problem, split, tasks, TEST_SEED).items()
        }
        for name, answer in answers.items()
    }


def _mean(samples: tr.Samples, tasks: bool) -> Tensor:
    """The mean target of each task, or of all of them."""
    y = samples.y
    real = torch.ones(y.shape[:2], device=y.device) if samples.mask is None else samples.mask.to(y)
    real = real.reshape(*real.shape, *[1] * (y.dim() - 2))
    over = (0, 1) if tasks else (1,)
    return (y * real).sum(over) / real.expand_as(y).sum(over)
