"""What an experiment is about: tasks to draw, a network for them, and how answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import trlearner as tr

Split = Literal["train", "validation", "test", "shifted"]
"""``shifted`` are test tasks from outside of the training distribution, where a source has any."""


@runtime_checkable
class Source(Protocol):
    """Where tasks come from.

    Attributes:
        splits: The names of those that it has; ``shifted`` is not in every source.
    """

    @property
    def splits(self) -> Collection[str]: ...

    def sample(self, split: Split, n_tasks: int, generator: torch.Generator) -> tr.TaskBatch:
        """Tasks of a split, on the device; the same ones for the same state of the generator.

        Raises:
            ValueError: There is no such split.
        """


@runtime_checkable
class Finite(Protocol):
    """A source whose training tasks can be told apart, so that a sampler can choose among them.

    Attributes:
        names: Of its training tasks, all different; ``None`` where they are an endless stream after all.
    """

    @property
    def names(self) -> Sequence[str] | None: ...

    def pick(self, names: Sequence[str], generator: torch.Generator) -> tr.TaskBatch:
        """These training tasks, with samples that the generator draws; `ids` are the names."""


@dataclass(frozen=True)
class Metric:
    """A number for each task, by which learners are compared.

    Attributes:
        name: As tables call it, e.g. ``"accuracy"``.
        better: Which way is better.
        of_tasks: ``(predictions [tasks, queries, ...], query Samples) -> [tasks]``; real queries only.
        summaries: How the tasks' numbers become one, by name; their mean unless it says otherwise.
    """

    name: str
    better: Literal["higher", "lower"]
    of_tasks: Callable[[Tensor, tr.Samples], Tensor]
    summaries: Mapping[str, Callable[[Tensor], Tensor]] = field(
        default_factory=lambda: {"mean": torch.mean}
    )


@dataclass(frozen=True)
class Problem:
    """A family of tasks and what goes with it.

    Attributes:
        source: Draws the tasks.
        network: Makes the network, from torch's global random state.
        head: The name of the part that ANIL adapts.
        features: The part of a network that the relation layer's encoder and ProtoNet look through;
            ``None`` for inputs as they are.
        loss_fn: For one task, as trlearner takes it.
        metrics: The first decides on validation tasks.
        encoder: ``"labelled"`` where tasks share their inputs, else ``"input"``.
        align: How classes of different tasks are matched.
    """

    source: Source
    network: Callable[[], nn.Module]
    head: str
    features: Callable[[nn.Module], nn.Module | None]
    loss_fn: tr.types.LossFn
    metrics: tuple[Metric, ...]
    encoder: Literal["labelled", "input"] = "labelled"
    align: Literal["none", "sinkhorn"] = "none"


@dataclass(frozen=True)
class Request:
    """What a problem is built for.

    Attributes:
        shots: Support samples of a task (of each class, where there are classes).
        queries: Query samples of a task (of each class).
        ways: Classes of a task.
        train_tasks: Train on so many tasks only (of as many as the problem usually has).
        pool: Fix so many samples of each training task, instead of fresh ones.
        data_dir: Where real data lies; each problem knows its folder in it.
        device: Where tasks are to be.
        options: What only this problem knows, e.g. ``{"omega": 1.0}``.
    """

    shots: int
    queries: int
    ways: int = 5
    train_tasks: int | None = None
    pool: int | None = None
    data_dir: Path | None = None
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


Builder = Callable[[Request], Problem]


class MissingData(FileNotFoundError):
    """Data that is not there: where to get it, in which folder it goes, and what runs without."""


def need(request: Request, folder: str, what: str, where: str, instead: str) -> Path:
    """The folder of a problem's data, if it is there.

    Args:
        request: Says where data lies.
        folder: Below the data folder, e.g. ``"images/omniglot"``.
        what: The data, for the error text.
        where: Where it can be had.
        instead: The problem that runs without it.

    Raises:
        MissingData: It is not there.
    """
    found = None if request.data_dir is None else request.data_dir / folder
    if found is not None and found.exists():
        return found
    place = f"{request.data_dir or 'DATA'}/{folder}"
    raise MissingData(
        f"{what} is not in {place}. Get it from {where}, put it there, and pass --data-dir DATA or set "
        f"TRLEARNER_DATA=DATA. Without any data, {instead} runs."
    )
