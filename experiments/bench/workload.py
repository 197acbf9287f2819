"""What is timed: networks, tasks and settings that every contender gets alike.

A new workload is one function here that returns a `Workload`, and one line in `WORKLOADS`. Networks are
`nn.Sequential`, whose layers may be modules of any kind, so that every contender sees what the head is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from trlearner.experiments.bench.learners import OTHERS, Make, maml
from trlearner.experiments.data.models.fingerprint import FingerprintNet
from trlearner.experiments.data.models.resnet12 import ResNet12

import trlearner as tr
from trlearner.base.types import LossFn

OUTER_RATE = 1e-5
"""So small that the weights stay about where they began: the last round times what the first did."""


@dataclass(frozen=True)
class Workload:
    """One meta-step, and how TRLearner joins it.

    Attributes:
        name: As the table has it.
        build: Makes the network; its last layer is the head.
        batch: The tasks, the same in every step.
        loss: Of one task, in the inner loop and the outer one.
        rate: Of the inner loop.
        steps: Of the inner loop.
        encoder: Of the rows with TRLearner; gets the network.
        relation: Further arguments of `TRLearner`.
        make: The learner.
        left_out: Contenders, as patterns, that run only where they are asked for by name, and why.
    """

    name: str
    build: Callable[[], nn.Sequential]
    batch: tr.TaskBatch
    loss: LossFn
    rate: float
    steps: int
    encoder: Callable[[nn.Sequential], tr.LabelledEncoder]
    relation: dict[str, Any] = field(default_factory=dict)
    make: Make = maml
    left_out: Mapping[str, str] = field(default_factory=dict)

    def net(self) -> nn.Sequential:
        """A network of its own for everyone who asks, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def learner(self, net: nn.Sequential, engine: str) -> tr.Learner:
        """Adapts the network."""
        return self.make(net, self.rate, self.steps, engine)

    def double(self) -> Workload:
        """The same in float64, where rounding moves nothing across a kink of ReLU or pooling."""
        return replace(
            self, build=lambda: self.build().double(), batch=self.batch.to(torch.float64)
        )

    def to(self, device: torch.device) -> Workload:
        """The same weights and tasks on a device."""
        return replace(self, build=lambda: self.build().to(device), batch=self.batch.to(device))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Support inputs and targets, query inputs and targets: each ``[tasks, samples, ...]``."""
        (xs, ys, _), (xq, yq, _) = self.batch.support, self.batch.query
        return xs, ys, xq, yq

    def tasks(self) -> list[tuple[torch.Tensor, ...]]:
        """The same as one ``(xs, ys, xq, yq)`` a task, for contenders that loop."""
        return list(zip(*self.tensors(), strict=True))


def sinusoid_net() -> nn.Sequential:
    """1-40-40-1 with ReLU."""
    layers = [nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)]
    return nn.Sequential(*layers)


def sinusoid(tasks: int, steps: int = 5) -> Workload:
    """5 support and 10 query samples of sinusoids of random amplitude and phase."""
    draw = torch.Generator().manual_seed(0)
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=draw)
    phase = torch.pi * torch.rand(tasks, 1, 1, generator=draw)
    x = 10 * torch.rand(tasks, 15, 1, generator=draw) - 5
    y = amplitude * torch.sin(x + phase)
    return Workload(
        name=f"sinusoid-{tasks}",
        build=sinusoid_net,
        batch=tr.TaskBatch(support=(x[:, :5], y[:, :5]), query=(x[:, 5:], y[:, 5:])),
        loss=mse_loss,
        rate=0.01,
        steps=steps,
        encoder=lambda net: tr.LabelledEncoder(None, dim=32, features=1, targets=1),
    )


def flat(net: nn.Module) -> nn.Sequential:
    """A network of the experiments as a sequence, whose last layer is the head."""
    return nn.Sequential(*net.features, net.head)


def fingerprint(tasks: int, hidden: int = 500) -> Workload:
    """Sparse fingerprints of 1024 bits, a linear target; sizes and rate of the preset ``drugs/csv``."""
    draw, (shots, queries) = torch.Generator().manual_seed(0), (10, 20)
    x = (torch.rand(tasks, shots + queries, 1024, generator=draw) < 0.05).float()
    y = x @ torch.randn(tasks, 1024, 1, generator=draw) / 7
    return Workload(
        name=f"fingerprint-{tasks}",
        build=lambda: flat(FingerprintNet(hidden=hidden)),
        batch=tr.TaskBatch((x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])),
        loss=mse_loss,
        rate=0.05,
        steps=5,
        encoder=lambda net: tr.LabelledEncoder(net[:-1], dim=32, targets=1),
        left_out={"* + TRLearner*": "minutes a step at T > 64"} if tasks > 64 else {},
    )


def conv_net(
    size: int = 28, filters: int = 32, blocks: int = 4, ways: int = 5, channels: int = 1
) -> nn.Sequential:
    """Blocks of convolution, batch normalization, ReLU and pooling, and a linear head.

    BatchNorm keeps no running statistics, for not every peer can carry them through a meta-step.
    """
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers += [
            nn.Conv2d(channels if block == 0 else filters, filters, 3, padding=1),
            nn.BatchNorm2d(filters, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    features = filters * (size // 2**blocks) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, ways))


def conv(
    name: str,
    steps: int,
    tasks: int = 4,
    size: int = 28,
    queries: int = 15,
    shots: int = 1,
    channels: int = 1,
    **net: int,
) -> Workload:
    """5 ways: every class a pattern of its own, its samples noise around it."""
    draw, ways = torch.Generator().manual_seed(0), 5
    patterns = torch.randn(tasks, ways, 1, channels, size, size, generator=draw)
    noise = torch.randn(tasks, ways, shots + queries, channels, size, size, generator=draw)
    x, y = patterns + noise, torch.arange(ways).expand(tasks, shots + queries, ways).mT
    support, query = (
        (x[:, :, part].flatten(1, 2), y[:, :, part].flatten(1, 2))
        for part in (slice(shots), slice(shots, None))
    )
    return Workload(
        name=name,
        build=partial(conv_net, size, channels=channels, **net),
        batch=tr.TaskBatch(support, query, ways=ways),
        loss=cross_entropy,
        rate=0.1,
        steps=steps,
        encoder=lambda net: tr.LabelledEncoder(net[:-1], dim=32),
        relation={"align": "sinkhorn"},
        left_out={
            "compiled + TRLearner*": "compiles for minutes",
            **({"* + TRLearner*": "wants 10 GB at T > 4; see chunk_size="} if tasks > 4 else {}),
            **({"batched + TRLearner*": "wants 9 GB and 40 s a step"} if size > 28 else {}),
        },
    )


def resnet(size: int = 32, widths: tuple[int, ...] = (64, 160, 320, 640)) -> Workload:
    """ResNet-12 with all its filters, but 32 x 32 pictures in place of 84 x 84, 2 queries a class, T = 2."""
    tasks = conv(f"resnet12-{size}", steps=1, tasks=2, size=size, queries=2, channels=3)
    return replace(tasks, build=lambda: flat(ResNet12(ways=5, channels=3, widths=widths)))


def with_learner(name: str, workload: Callable[[], Workload]) -> Workload:
    """The same tasks and network, but another learner than MAML."""
    made = workload()
    return replace(made, name=f"{name} on {made.name}", make=OTHERS[name])


CURVES = tuple(name for name in OTHERS if name != "ProtoNet")
"""The learners that can regress."""

WORKLOADS: dict[str, Callable[[], Workload]] = {
    **{f"sinusoid-{tasks}": partial(sinusoid, tasks) for tasks in (4, 16, 64, 256)},
    "conv4-1step": partial(conv, "conv4-1step", steps=1),
    "conv4-5step": partial(conv, "conv4-5step", steps=5),
    "conv4-5shot": partial(conv, "conv4-5shot", steps=1, shots=5),
    "conv4-16tasks": partial(conv, "conv4-16tasks", steps=1, tasks=16),
    "conv4-84": partial(conv, "conv4-84", steps=1, size=84, channels=3),
    "resnet12-32": resnet,
    **{f"{n} on sinusoid-16": partial(with_learner, n, partial(sinusoid, 16)) for n in CURVES},
    **{
        f"{n} on conv4-1step": partial(with_learner, n, partial(conv, "conv4-1step", steps=1))
        for n in OTHERS
    },
    **{f"fingerprint-{tasks}": partial(fingerprint, tasks) for tasks in (4, 16, 64, 256)},
}
"""Every workload by the name that it gets; made only when it is wanted."""
