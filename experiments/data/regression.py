"""One-dimensional curves, drawn without any data.

A task is one curve seen at a few points, with noise. Training tasks are a fixed set of curves, with fresh
points in every batch or a fixed pool of them; validation and test tasks are new curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trlearner.experiments.data.models.mlp import mlp
from trlearner.experiments.data.problem import Builder, Metric, Problem, Request, Split
from trlearner.experiments.data.setting import Range, option

import trlearner as tr

LOW, HIGH = -5.0, 5.0
"""The interval from which all inputs are drawn."""

PARAMETERS = 5
"""A curve has so many, whichever family it is of; the first says which."""


@dataclass(frozen=True)
class Family:
    """Curves of one formula.

    Attributes:
        name: E.g. ``"sine"``.
        low: Where each of its parameters is drawn from, uniformly: the lower end.
        high: The upper end.
        shifted: Both ends for tasks from outside of the training distribution.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    shifted: tuple[tuple[float, ...], tuple[float, ...]]


TAU = 2 * math.pi
# Amplitude, frequency, phase.
SINE = Family("sine", (0.1, 0.5, 0.0), (5.0, 2.0, TAU), ((5.0, 2.0, 0.0), (6.0, 2.5, TAU)))
CLASSIC = Family(
    "sine", (0.1, 1.0, 0.0), (5.0, 1.0, math.pi), ((5.0, 1.0, math.pi), (6.0, 1.0, TAU))
)
# Amplitude and phase of a wave and of its octave; the frequency is the same for all.
HARMONIC = Family(
    "harmonic",
    (-2.0, 0.0, -2.0, 0.0),
    (2.0, TAU, 2.0, TAU),
    ((2.0, 0.0, 2.0, 0.0), (3.0, TAU, 3.0, TAU)),
)
# Slope and intercept.
LINE = Family("line", (-3.0, -3.0), (3.0, 3.0), ((3.0, 3.0), (4.0, 4.0)))
# Curvature, place and height of the vertex.
PARABOLA = Family(
    "parabola", (-0.4, -2.0, -2.0), (0.4, 2.0, 2.0), ((0.4, -2.0, 2.0), (0.6, 2.0, 3.0))
)
# Height and period.
SAW = Family("saw", (1.0, 2.0), (4.0, 6.0), ((4.0, 6.0), (5.0, 8.0)))


def curve(family: str, p: Tensor, x: Tensor) -> Tensor:
    """Curves of one family with parameters ``p [tasks, parameters]`` at ``x [tasks, samples]``."""
    a, b, c, d = (p[:, i, None] for i in range(4))
    if family == "sine":
        return a * torch.sin(b * x + c)
    if family == "harmonic":
        return a * torch.sin(x + b) + c * torch.sin(2 * x + d)
    if family == "line":
        return a * x + b
    if family == "parabola":
        return a * (x - b) ** 2 + c
    return a * (2 * torch.remainder(x / b, 1.0) - 1)


class Curves:
    """A source of tasks from one or several families.

    Args:
        families: Each task is of one of them, drawn uniformly; `TaskBatch.ids` says of which.
        request: Shots, queries, number and pool of training tasks.
        noise: Standard deviation of the targets' noise.
        train_tasks: How many training curves there are unless the request says otherwise.
    """

    splits = ("train", "validation", "test", "shifted")

    def __init__(
        self, families: tuple[Family, ...], request: Request, noise: float, train_tasks: int
    ) -> None:
        self.families = families
        self.shots, self.queries = request.shots, request.queries
        self.noise, self.device = noise, torch.device(request.device)
        generator = torch.Generator(self.device).manual_seed(0)
        self.train = self.draw(request.train_tasks or train_tasks, generator, shifted=False)
        self.pool = None
        if request.pool is not None:
            if request.pool < self.shots + self.queries:
                raise ValueError(
                    f"pool must hold the {self.shots} support and {self.queries} query samples of a "
                    f"task, got {request.pool}."
                )
            self.pool = self._points(self.train, request.pool, generator)

    def sample(self, split: Split, n_tasks: int, generator: torch.Generator) -> tr.TaskBatch:
        """Tasks of a split; training curves are drawn without repetition within a batch."""
        if split not in self.splits:
            raise ValueError(f"split must be train, validation, test or shifted, got {split!r}.")
        samples = self.shots + self.queries
        if split == "train":
            chosen = self._choose(n_tasks, generator)
            curves = self.train[chosen]
            x, y = self._training_points(chosen, generator)
        else:
            curves = self.draw(n_tasks, generator, shifted=split == "shifted")
            x, y = self._points(curves, samples, generator)
        return self._batch(x, y, self._families(curves))

    @property
    def names(self) -> list[str]:
        """Family and number of each training curve."""
        return [f"{family} {i}" for i, family in enumerate(self._families(self.train))]

    def pick(self, names: Sequence[str], generator: torch.Generator) -> tr.TaskBatch:
        """These training curves."""
        chosen = torch.tensor([int(name.split()[-1]) for name in names], device=self.device)
        return self._batch(*self._training_points(chosen, generator), names)

    def _families(self, curves: Tensor) -> list[str]:
        return [self.families[int(f)].name for f in curves[:, 0].tolist()]

    def _batch(self, x: Tensor, y: Tensor, names: Sequence[str]) -> tr.TaskBatch:
        k = self.shots
        return tr.TaskBatch(support=(x[:, :k], y[:, :k]), query=(x[:, k:], y[:, k:]), ids=names)

    def _training_points(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh points of training curves, or some of their pool."""
        samples = self.shots + self.queries
        if self.pool is None:
            return self._points(self.train[chosen], samples, generator)
        keys = self._uniform(generator, len(chosen), self.pool[0].shape[1])
        picked = keys.argsort(1)[:, :samples, None]
        x, y = (values[chosen].gather(1, picked) for values in self.pool)
        return x, y

    def _choose(self, n_tasks: int, generator: torch.Generator) -> Tensor:
        if n_tasks > len(self.train):
            raise ValueError(
                f"n_tasks must be at most the {len(self.train)} training tasks, got {n_tasks}."
            )
        return torch.randperm(len(self.train), generator=generator, device=self.device)[:n_tasks]

    def _uniform(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=self.device)

    def draw(self, tasks: int, generator: torch.Generator, shifted: bool) -> Tensor:
        """Curves ``[tasks, PARAMETERS]``: the family's number and its parameters."""
        which = torch.randint(len(self.families), (tasks,), generator=generator, device=self.device)
        ends = torch.zeros(2, len(self.families), PARAMETERS - 1, device=self.device)
        for i, family in enumerate(self.families):
            low, high = family.shifted if shifted else (family.low, family.high)
            ends[0, i, : len(low)] = torch.tensor(low)
            ends[1, i, : len(high)] = torch.tensor(high)
        low, high = ends[0, which], ends[1, which]
        parameters = low + (high - low) * self._uniform(generator, tasks, PARAMETERS - 1)
        return torch.cat([which[:, None].to(parameters), parameters], 1)

    def values(self, curves: Tensor, x: Tensor) -> Tensor:
        """Curves at ``x [tasks, samples]``, without noise."""
        each = torch.stack([curve(f.name, curves[:, 1:], x) for f in self.families])
        return each[curves[:, 0].long(), torch.arange(len(curves), device=self.device)]

    def _points(
        self, curves: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs and noisy targets ``[tasks, samples, 1]``."""
        x = LOW + (HIGH - LOW) * self._uniform(generator, len(curves), samples)
        y = self.values(curves, x)
        noise = torch.randn(x.shape, generator=generator, device=self.device)
        return x[..., None], (y + self.noise * noise)[..., None]


def squared_error(predictions: Tensor, query: tr.Samples) -> Tensor:
    """The mean squared error of each task's real queries: ``[tasks]``."""
    errors = (predictions - query.y).flatten(2).square().mean(2)
    if query.mask is None:
        return errors.mean(1)
    return (errors * query.mask).sum(1) / query.mask.sum(1)


MSE = Metric("mse", "lower", squared_error)


def problem(families: tuple[Family, ...], noise: float, train_tasks: int = 480) -> Builder:
    """How to build a problem from families of curves."""

    def build(request: Request) -> Problem:
        if strange := sorted(set(request.options) - {"noise"}):
            raise ValueError(f"options must be among noise, got {strange}.")
        deviation = float(option(request.options, "noise", noise, float, Range(0, 1e6)))
        return Problem(
            source=Curves(families, request, deviation, train_tasks),
            network=mlp,
            head="head",
            features=_inputs,
            loss_fn=mse_loss,
            metrics=(MSE,),
        )

    return build


def _inputs(network: nn.Module) -> None:
    """Tasks share their inputs; the relation layer looks at inputs and targets as they are."""


PROBLEMS: Mapping[str, Builder] = {
    "regression/sinusoid": problem((SINE,), noise=0.3),
    "regression/sinusoid-classic": problem((CLASSIC,), noise=0.0),
    "regression/harmonic": problem((HARMONIC,), noise=0.1),
    "regression/sinusoid-line": problem((SINE, LINE), noise=0.3),
    "regression/families": problem((SINE, LINE, PARABOLA, SAW), noise=0.3),
}
