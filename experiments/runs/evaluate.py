"""How well a learner does on fixed tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from trlearner.experiments.data.problem import Problem, Split

import trlearner as tr

VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
"""Of the fixed tasks; no training seed comes near. They are the same for every run of a problem."""

DRAWN, ADAPTED = 100, 20
"""So many tasks are drawn at once (a source repeats none of a finite set within one draw), and so many
adapted to at once: both whatever the batch in training, so that all runs see the same tasks."""


@runtime_checkable
class Adapts(Protocol):
    """What is judged: a `trlearner.Learner`, or an answer of `trivial`."""

    def adapt(
        self, support: tr.Samples, loss_fn: tr.types.LossFn, *, steps: int | None = None
    ) -> Callable[[tr.Samples], Tensor]: ...

    def parameters(self) -> Iterator[Tensor]: ...


@torch.no_grad()
def evaluate(
    learner: Adapts,
    problem: Problem,
    split: Split,
    tasks: int,
    seed: int,
    steps: int | None = None,
) -> dict[str, Any]:
    """Every metric of the problem, after adaptation to fixed tasks of a split.

    Args:
        learner: Adapts; in evaluation mode.
        problem: Draws the tasks and judges the answers.
        split: Which tasks.
        tasks: How many.
        seed: Of the tasks.
        steps: Inner steps, if others than the learner's own.

    Returns:
        By metric, its ``summaries`` by name and one number for each of the ``tasks``.
    """
    device = next(learner.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    found: dict[str, list[torch.Tensor]] = {metric.name: [] for metric in problem.metrics}
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # for random layers that stay random in evaluation
        for start in range(0, tasks, DRAWN):
            drawn = problem.source.sample(split, min(DRAWN, tasks - start), generator)
            for first in range(0, len(drawn), ADAPTED):
                batch = drawn[first : first + ADAPTED]
                adapted = learner.adapt(batch.support, problem.loss_fn, steps=steps)
                predictions = adapted(batch.query)
                for metric in problem.metrics:
                    found[metric.name].append(metric.of_tasks(predictions, batch.query).cpu())
    result: dict[str, Any] = {}
    for metric in problem.metrics:
        each = torch.cat(found[metric.name]).double()
        summaries = {name: float(summary(each)) for name, summary in metric.summaries.items()}
        result[metric.name] = {"summaries": summaries, "tasks": each.tolist()}
    return result
