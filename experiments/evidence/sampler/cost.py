"""What the sampler adds to meta-steps, measured in turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import cross_entropy, mse_loss
from trlearner.experiments.data.models.conv4 import Conv4
from trlearner.experiments.data.models.mlp import mlp

import trlearner as tr

EVERY, POOL = 10, 64
NETS = ("sinusoid", "conv4")


@dataclass(frozen=True)
class Cost:
    """Milliseconds of CPU time a meta-step, medians over blocks of `EVERY` steps taken in turns.

    Attributes:
        added: What the sampler adds, as a share of the step without it.
    """

    net: str
    engine: str
    tasks: int
    held_out: bool
    without: float
    with_sampler: float
    added: float
    blocks: int


def problem(net: str) -> tuple[torch.nn.Module, tr.TaskBatch, tr.types.LossFn, float]:
    """A model, a pool of tasks, a loss and an inner rate."""
    torch.manual_seed(0)
    if net == "sinusoid":
        x = 10 * torch.rand(POOL, 20, 1) - 5
        pool = tr.TaskBatch((x[:, :10], x[:, :10].sin()), (x[:, 10:], x[:, 10:].sin()), range(POOL))
        return mlp(), pool, mse_loss, 0.01
    y = torch.arange(5).expand(POOL, -1)
    images = torch.randn(POOL, 20, 1, 28, 28)
    pool = tr.TaskBatch(
        (images[:, :5], y), (images[:, 5:], y.repeat(1, 3)), ids=range(POOL), ways=5
    )
    return Conv4(ways=5, channels=1, size=28), pool, cross_entropy, 0.1


class Contender:
    """A training run that takes blocks of steps on demand."""

    def __init__(self, net: str, engine: str, tasks: int, held_out: bool | None) -> None:
        """`held_out` says who judges; ``None`` trains without a sampler."""
        model, self.pool, loss_fn, lr = problem(net)
        self.learner = tr.MAML(model, lr=lr, steps=5, engine=engine)
        sampler = None
        if held_out is not None:
            sampler = tr.AdaptiveTaskSampler(
                range(POOL),
                tasks,
                every=EVERY,
                warmup=0,
                extractor=model.features,
                held_out=self.pool[:tasks] if held_out else None,
            )
        self.draws = _endless(sampler or tr.samplers.UniformTaskSampler(range(POOL), tasks))
        self.reg = tr.TRLearner(
            tr.LabelledEncoder(None, dim=32), lam=0.0, loss_fn=loss_fn, sampler=sampler
        )
        self.optimizer = torch.optim.Adam(self.learner.parameters())

    def block(self) -> float:
        """Milliseconds of CPU time a step, over `EVERY` steps of which the sampler refreshes in one."""
        started = time.process_time()
        for ids in itertools.islice(self.draws, EVERY):
            self.optimizer.zero_grad()
            self.reg(self.learner, self.pool[ids]).loss.backward()
            self.optimizer.step()
        return 1e3 * (time.process_time() - started) / EVERY


def measure(net: str, engine: str, tasks: int, blocks: int) -> Iterator[Cost]:
    """Without a sampler, with one, and with one that judges by held-out tasks."""
    contenders = [Contender(net, engine, tasks, held_out) for held_out in (None, False, True)]
    for contender in contenders:
        contender.block()
        contender.block()  # the first look-ahead falls into the second
    times = [[c.block() for c in contenders] for _ in range(blocks)]
    without, *others = (statistics.median(column) for column in zip(*times, strict=True))
    for held_out, found in zip((False, True), others, strict=True):
        yield Cost(net, engine, tasks, held_out, without, found, found / without - 1, blocks)


def costs(blocks: int, nets: Sequence[str]) -> Iterator[dict]:
    """The nets on both engines."""
    cases = (("sinusoid", 4), ("sinusoid", 16), ("conv4", 4))
    for net, tasks in (case for case in cases if case[0] in nets):
        for engine in ("batched", "compiled"):
            few = max(3, blocks // 5) if net == "conv4" else blocks
            yield from map(asdict, measure(net, engine, tasks, few))


def _endless(sampler: tr.samplers.TaskSampler) -> Iterator[list]:
    while True:
        yield from sampler
