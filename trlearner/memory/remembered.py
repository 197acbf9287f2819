"""Remembered models: what they say of new tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trlearner.base.checks import shown
from trlearner.base.types import Fast, LossFn, State
from trlearner.engines.adapted import Adapted, Embedded, Models
from trlearner.engines.choose import without_graph
from trlearner.engines.collected_models import CollectedModels, Predict
from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.loss import task_losses
from trlearner.tasks.rows import part_of
from trlearner.tasks.samples import Samples

INPUTS = 2**16
"""About so many inputs are predicted at once, each by one model: what narrow layers make of them stays in a
processor's cache, which makes them three times as fast."""


class Known(NamedTuple):
    """Tasks whose models and samples are remembered."""

    tasks: TaskBatch | Samples
    models: Tensor  # positions among the models of their kind [tasks]
    callables: bool  # which kind


@dataclass
class Remembered:
    """Models of earlier tasks: first those of the learner, then callables.

    Attributes:
        fast: What the learner adapted ``[models, ...]`` by name.
        state: The learner's parameters and buffers at that time.
        callables: Models of any other kind.
        known: The tasks that they belong to.
        together: Ask each callable once for all tasks' samples.
    """

    fast: Fast = field(default_factory=dict)
    state: State = field(default_factory=dict)
    callables: list[Predict] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    together: bool = False

    def __len__(self) -> int:
        return self.adapted + len(self.callables)

    @property
    def adapted(self) -> int:
        """How many models are the learner's."""
        return len(next(iter(self.fast.values()))) if self.fast else 0

    def add_adapted(self, models: Adapted, tasks: TaskBatch | Samples) -> None:
        """Keeps the learner's models of these tasks.

        Raises:
            ValueError: They have other shapes than those that are kept already.
        """
        fast = {name: t.detach().clone() for name, t in models.fast.items()}
        first = self.adapted
        if not self.fast:
            self.fast = fast
            self.state = {name: t.detach().clone() for name, t in models.state.items()}
        else:
            check_alike(self.fast, fast)
            self.fast = {name: torch.cat([t, fast[name]]) for name, t in self.fast.items()}
        self.known.append(Known(tasks, torch.arange(first, self.adapted), callables=False))

    def add_callables(
        self, models: list[Predict], tasks: TaskBatch | Samples | None, together: bool
    ) -> None:
        """Keeps callables, of these tasks if they are known."""
        first = len(self.callables)
        self.together = together
        self.callables.extend(models)
        if tasks is not None:
            places = torch.arange(first, len(self.callables))
            self.known.append(Known(tasks, places, callables=True))

    def check_unchanged(self, learner: Learner) -> None:
        """Refuse a learner that is not what it was when tasks were remembered.

        Raises:
            ValueError: Naming what changed.
        """
        if not self.state:
            return
        now = learner.state()
        device = next(iter(now.values())).device  # the learner may have been moved
        self.fast = {name: t.to(device) for name, t in self.fast.items()}
        self.state = {name: t.to(device) for name, t in self.state.items()}
        changed = [
            name
            for name, t in self.state.items()
            if name not in now or t.dtype != now[name].dtype or not torch.equal(t, now[name])
        ]
        if changed:
            raise ValueError(
                f"the learner's {changed[0]!r} is not what it was when tasks were remembered, so their "
                "adapted models are of no use to it. Call memory.forget(), and remember them again."
            )

    def positions(self, known: Known) -> Tensor:
        """Where the models of these tasks stand among all ``[tasks]``."""
        return known.models + self.adapted if known.callables else known.models

    def say(self, own: Models | None, samples: Samples, size: int) -> Tensor:
        """What every model says of every task ``[tasks, models, samples, *outputs]``.

        Args:
            own: The tasks' own models, which say how those of the learner are run.
            samples: The tasks'.
            size: So many models are asked at once.
        """
        if not len(self):
            return samples.y.new_zeros(len(samples), 0, *samples.y.shape[1:])
        rows: list[Tensor] = []
        if self.fast:
            rows.append(self._all_say(own, samples, size))
        if self.callables:
            others = CollectedModels(self.callables, self.together)
            rows.append(others.cross(Embedded(samples.x, samples.mask)))
        _check_rows(rows)
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).transpose(0, 1)

    def _all_say(self, own: Models | None, samples: Samples, size: int) -> Tensor:
        """As `say`, models first, of the learner's."""
        models = self._models(own)
        features, mask = models.embed(samples)
        tasks = max(1, INPUTS // (min(size, self.adapted) * features.shape[1]))
        said: Tensor | None = None
        for first in range(0, self.adapted, size):
            some = models[first : first + size]
            for begin in range(0, len(features), tasks):
                part = slice(begin, begin + tasks)
                asked = Embedded(features[part], None if mask is None else mask[part])
                answers = some.cross(asked)
                if said is None:
                    said = answers.new_empty(self.adapted, len(features), *answers.shape[2:])
                said[first : first + size, part] = answers
        assert said is not None
        return said

    def say_chosen(self, own: Models | None, samples: Samples, chosen: Tensor, size: int) -> Tensor:
        """What chosen models ``[tasks, kept]`` say ``[tasks, kept, samples, *outputs]``.

        Args:
            own: As of `say`.
            samples: The tasks'.
            chosen: Positions of models.
            size: So many pairs of a model and a task are asked at once, at least one model for each task.
        """
        if not self.callables:
            return self._adapted_say(own, samples, chosen, size)
        parts: list[Tensor] = []
        if self.fast:  # asked of callables' places, too, which are filled in below
            own_kind = chosen.clamp(max=self.adapted - 1)
            parts.append(self._adapted_say(own, samples, own_kind, size))
        return self._callables_say(samples, chosen, *parts)

    def _adapted_say(
        self, own: Models | None, samples: Samples, chosen: Tensor, size: int
    ) -> Tensor:
        models = self._models(own)
        asked = models.embed(samples)
        rows = [
            models.cross(asked, models=some)
            for some in chosen.T.contiguous().split(max(1, size // len(samples)))
        ]
        return torch.cat(rows).transpose(0, 1)

    def _callables_say(
        self, samples: Samples, chosen: Tensor, others: Tensor | None = None
    ) -> Tensor:
        """Each callable once, for all tasks that chose it."""
        said = others
        models = CollectedModels(self.callables, self.together)
        for model in chosen.unique().tolist():
            if model < self.adapted:
                continue
            tasks, places = (chosen == model).nonzero(as_tuple=True)
            mask = None if samples.mask is None else samples.mask[tasks]
            one = slice(model - self.adapted, model - self.adapted + 1)
            answers = models[one].cross(Embedded(samples.x[tasks], mask))[0]
            if said is None:
                said = answers.new_zeros(*chosen.shape, *answers.shape[1:])
            said = said.index_put((tasks, places), answers.to(said.dtype))
        assert said is not None
        return said

    def _models(self, own: Models | None) -> Adapted:
        """The learner's remembered models, run like its own."""
        assert isinstance(own, Adapted)
        return Adapted(own.learner, self.state, self.fast, without_graph(own.runner))


def own_predictions(own: Models, samples: Samples, mask: Tensor | None = None) -> Tensor:
    """What the tasks' own models say ``[tasks, queries, *outputs]``."""
    if isinstance(own, Adapted):
        return own.predict(own.embed(samples))
    itself = torch.arange(len(samples))[None]
    return own.cross(own.embed(samples), models=itself)[0]


def losses_of(own: Models | None, loss_fn: LossFn, predictions: Tensor, samples: Samples) -> Tensor:
    """Each task's loss ``[tasks]``."""
    if own is None:
        return task_losses(loss_fn, predictions, samples.y, samples.mask)
    return own.losses(loss_fn, predictions, samples)


def own_models(
    learner: Learner | None,
    samples: Samples,
    loss_fn: LossFn,
    steps: int | None,
    own: Sequence[Predict] | None,
) -> Models | None:
    """The tasks' own models: adapted by the learner, or given, or none."""
    check_own(learner, own, len(samples))
    if learner is not None:
        return learner.adapt(samples, loss_fn, steps=steps)
    return None if own is None else CollectedModels(list(own), together=False)


def check_own(learner: Learner | None, own: Any, tasks: int) -> None:
    """Refuse own models beside a learner, or of another number than there are tasks.

    Raises:
        TypeError: They are no callables.
        ValueError: There is a learner, or not one for each task.
    """
    if own is None:
        return
    check_callables("own", own, tasks)
    if learner is not None:
        raise ValueError(
            "own must be None where the memory has a learner, which adapts to the tasks itself, got "
            f"{len(own)} models. Make the memory without one, tr.TaskMemory(), to pass models of your own."
        )


def check_callables(name: str, models: Any, tasks: int | None = None) -> None:
    """Refuse what is no list of models, or of another number than there are tasks.

    Raises:
        TypeError: It is no list of callables.
        ValueError: It has another length.
    """
    sequence = isinstance(models, Sequence) and not isinstance(models, str)
    if not sequence or not all(map(callable, models)):
        raise TypeError(
            f"{name} must be a list of callables, x [samples, ...] -> predictions [samples, ...], one for "
            f"each task, got {shown(models)}."
        )
    if len(models) == 0 or (tasks is not None and len(models) != tasks):
        wanted = "at least one model" if tasks is None else f"one for each of the {tasks} tasks"
        raise ValueError(f"{name} must be a list of models, {wanted}, got {len(models)}.")


def check_alike(remembered: Fast, other: Fast) -> None:
    """Refuse models of other shapes than the remembered ones (prototypes of more classes, say).

    Raises:
        ValueError: With both.
    """
    shapes = [
        {n: list(t.shape[1:]) for n, t in part_of(fast, slice(0, 1)).items()}
        for fast in (remembered, other)
    ]
    if remembered and shapes[0] != shapes[1]:
        raise ValueError(
            f"all tasks of a memory must adapt the same tensors, got {shapes[1]} where {shapes[0]} are "
            "remembered. Give all tasks the same number of classes (ways), or keep a memory for each."
        )


def _check_rows(rows: list[Tensor]) -> None:
    shapes = {tuple(row.shape[1:]) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"all remembered models must predict alike, got [tasks, samples, *outputs] of {sorted(shapes)}. "
            "Keep a memory for each kind, or reshape the callables' answers."
        )


def finite(fast: Fast) -> Tensor:
    """Which models hold nothing but numbers ``[models]``."""
    return torch.stack([t.reshape(len(t), -1).isfinite().all(1) for t in fast.values()]).all(0)
