"""Finite sets of tasks in which something is planted for a sampler to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from trlearner.experiments.data.models.mlp import mlp

import trlearner as tr
from trlearner.base.types import LossFn

WAYS, WIDTH, SHOTS, QUERIES = 3, 12, 5, 10


@dataclass(frozen=True, eq=False)
class Planted:
    """A set of tasks.

    Attributes:
        pool: To draw from; ids are positions.
        marked: ``[tasks]``, true for those that a sampler should treat otherwise than the rest.
        held_out: Sound tasks, as one would validate on.
        test: Many more of these.
        loss_fn: For one task.
        model: Makes the network.
        inner_lr: Of MAML; tuned with uniform draws, as are its steps.
        steps: Meta-steps of a run, after which uniform draws gain little more.
    """

    pool: tr.TaskBatch
    marked: Tensor
    held_out: tr.TaskBatch
    test: tr.TaskBatch
    loss_fn: LossFn
    model: Callable[[], torch.nn.Module]
    inner_lr: float = 0.05
    steps: int = 600


def shuffled(seed: int, tasks: int = 300) -> Planted:
    """Few-shot classification; in half of the tasks labels are shuffled, of support and query each."""
    g = torch.Generator().manual_seed(seed)
    # Classes differ along few directions; what is loud along the others is what there is to learn.
    plane, loud = torch.randn(4, WIDTH, generator=g), 2 * torch.randn(8, WIDTH, generator=g)
    warp = torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5
    marked = torch.arange(tasks) < tasks // 2

    def draw(count: int, lots: Tensor | None = None) -> tr.TaskBatch:
        centres = 1.5 * torch.randn(count, WAYS, 4, generator=g)

        def samples(shots: int) -> tuple[Tensor, Tensor]:
            y = torch.arange(WAYS).repeat(shots).expand(count, -1)
            told = centres[torch.arange(count)[:, None], y]
            told = told + 0.5 * torch.randn(told.shape, generator=g)
            x = (told @ plane + torch.randn(*y.shape, 8, generator=g) @ loud) / 6
            if lots is not None:
                order = torch.rand(y.shape, generator=g).argsort(1)
                y = torch.where(lots[:, None], y.gather(1, order), y)
            return x + (x @ warp).tanh(), y

        return tr.TaskBatch(samples(SHOTS), samples(QUERIES), ids=range(count), ways=WAYS)

    return Planted(
        draw(tasks, marked),
        marked,
        draw(96),
        draw(300),
        cross_entropy,
        partial(mlp, WIDTH, hidden=32, outputs=WAYS),
        inner_lr=0.5,
    )


def rare(seed: int, tasks: int = 600, share: float = 0.1) -> Planted:
    """Regression; nine tasks of ten are copies of one sinusoid, the others are lines of any slope.

    Copies have inputs and noise of their own. What counts is both families alike. There are enough lines to
    learn any line from: with a dozen, to draw them more often can be worse than uniform draws.
    """
    g = torch.Generator().manual_seed(seed)
    phase = 3 * torch.rand((), generator=g)
    marked = torch.arange(tasks) < round(share * tasks)

    def draw(lines: Tensor) -> tr.TaskBatch:
        slope, offset = 2 * torch.rand(2, len(lines), 1, 1, generator=g) - 1

        def samples(count: int) -> tuple[Tensor, Tensor]:
            x = 10 * torch.rand(len(lines), count, 1, generator=g) - 5
            y = torch.where(lines[:, None, None], slope * x + offset, 2 * (x + phase).sin())
            return x, y + 0.1 * torch.randn(y.shape, generator=g)

        return tr.TaskBatch(samples(2 * SHOTS), samples(QUERIES), ids=range(len(lines)))

    both = torch.arange(96) % 2 == 0
    return Planted(
        draw(marked),
        marked,
        draw(both),
        draw(torch.arange(300) % 2 == 0),
        mse_loss,
        mlp,
        steps=1000,
    )


def sound(seed: int, tasks: int = 120) -> Planted:
    """Sinusoids of any amplitude and phase, all of them good to learn from."""
    g = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tr.TaskBatch:
        amplitude = 0.5 + 2 * torch.rand(count, 1, 1, generator=g)
        phase = 3.14 * torch.rand(count, 1, 1, generator=g)

        def samples(size: int) -> tuple[Tensor, Tensor]:
            x = 10 * torch.rand(count, size, 1, generator=g) - 5
            return x, amplitude * (x + phase).sin()

        return tr.TaskBatch(samples(2 * SHOTS), samples(QUERIES), ids=range(count))

    marked = torch.arange(tasks) < tasks // 2  # by no difference at all
    return Planted(draw(tasks), marked, draw(96), draw(300), mse_loss, mlp)


SETS = {"shuffled labels": shuffled, "rare family": rare, "all sound": sound}
