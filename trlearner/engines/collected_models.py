"""Adapted models of a loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from trlearner.base.types import LossFn, State
from trlearner.engines.adapted import Embedded, Engine
from trlearner.engines.handed_over import backward_has_passed, clock
from trlearner.tasks.loss import task_losses
from trlearner.tasks.nested import (
    Layout,
    as_data,
    layout_of,
    leaves,
    packed,
    per_task,
    raw,
    shown,
    unpacked,
)
from trlearner.tasks.samples import Samples

Predict = Callable[[Any], Any]
"""An adapted model: from inputs ``[samples, ...]`` to a tensor, or a tuple or dict of tensors."""


def without_gradient(task: int) -> str:
    """The error for a model that was adapted without a graph."""
    return (
        f"the predictions of task {task}'s model carry no gradient. Adapt it with a graph: not under "
        "torch.no_grad(), and without .detach() on adapted parameters (with higher: "
        "copy_initial_weights=False and track_higher_grads=True)."
    )


def _nothing(*_: Any) -> Any:
    raise NotImplementedError  # adaptation lies behind the models


RUNNER = Engine("collected", _nothing, _nothing, _nothing, _nothing, task_losses)


class CollectedModels:
    """Callables that were adapted elsewhere, asked like `Adapted`.

    Args:
        models: One for each task.
        fast: Each task's adapted parameters, where the loop handed them over.
        start: The parameters where every task's adaptation starts, where the loop handed them over.
        together: Ask each model once for all tasks' queries; right only where no sample's prediction depends
            on the others.

    Example:
        >>> models = CollectedModels([lambda x: x, lambda x: 2 * x], together=True)
        >>> with torch.no_grad():
        ...     answers = models.cross(Embedded(torch.ones(2, 3, 1), None))
        >>> answers.shape
        torch.Size([2, 2, 3, 1])
    """

    runner = RUNNER

    def __init__(
        self,
        models: Sequence[Predict],
        together: bool,
        fast: Sequence[Any] = (),
        start: Any = None,
    ) -> None:
        self._models, self._together = models, together
        self._fast, self._start = fast, start
        self._asked: Sequence[int] = range(len(models))
        # Of predictions, once they were seen; shared by all parts of these models.
        self._layout: list[Layout | None] = []
        self._sizes: list[list[int]] = []
        self._checked: set[int] = set()

    @property
    def learner(self) -> None:
        """None of ours."""
        return None

    @property
    def state(self) -> State:
        """Nothing: the models hold what they need."""
        return {}

    def __len__(self) -> int:
        return len(self._asked)

    def __getitem__(self, part: slice | Tensor) -> CollectedModels:
        """Some of the models: a slice, or their positions ``[some]``."""
        some = object.__new__(CollectedModels)
        some.__dict__ = {**self.__dict__}
        places = range(len(self))[part] if isinstance(part, slice) else part.tolist()
        some._asked = [self._asked[place] for place in places]
        return some

    def embed(self, samples: Samples) -> Embedded:
        """The inputs as they are."""
        return Embedded(samples.x, samples.mask)

    def couples_samples(self) -> bool:
        """Unless the user says otherwise, nothing is known of other people's models."""
        return not self._together

    def cross(self, x: Embedded, *, models: Tensor | None = None) -> Tensor:
        """As of `Adapted`: ``[models, tasks, queries, *outputs]``."""
        features, mask = x
        tasks = len(features)
        if models is None and mask is None and self._together:
            joined = [self._predict(task, features.flatten(0, 1)) for task in self._asked]
            return torch.stack(joined).unflatten(1, (tasks, -1))
        rows = [[task] * tasks for task in range(len(self))] if models is None else models.tolist()

        def row(places: list[int]) -> Tensor:
            return per_task(
                lambda i, keep: self._predict(self._asked[places[i]], features[i][keep]),
                mask,
                tasks,
            )

        return torch.stack([row(places) for places in rows])

    def losses(self, loss_fn: LossFn, predictions: Tensor, samples: Samples) -> Tensor:
        """As of `Adapted`; the loss is given predictions as the models return theirs."""
        (layout,) = self._layout
        return task_losses(loss_fn, unpacked(predictions, layout, 2), samples.y, samples.mask)

    def moved(self) -> Tensor:
        """As of `Adapted`, of the parameters that the loop handed over.

        Raises:
            ValueError: It did not, or they do not fit where they start.
        """
        start, given = self._start, [self._fast[task] for task in self._asked if self._fast]
        if start is None or not given or any(fast is None for fast in given):
            raise ValueError(
                "UpdateEncoder looks at what adaptation changed, which a loop of your own has to show: "
                "tasks = reg.collect(start=list(net.parameters())) and tasks.add(..., fast=fast), with the "
                "adapted parameters in the same order. Or use another encoder, e.g. LabelledEncoder."
            )
        rows, start = [], tree_leaves(start)
        for task, fast in zip(self._asked, map(tree_leaves, given), strict=True):
            shapes = [[list(t.shape) for t in tensors] for tensors in (start, fast)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"fast must hold the parameters of start, adapted, got shapes {shapes[1]} of task {task} "
                    f"and {shapes[0]} of start."
                )
            rows.append(torch.cat([(a - b).flatten() for a, b in zip(fast, start, strict=True)]))
        return torch.stack(rows)

    def _predict(self, task: int, x: Any) -> Tensor:
        """What one model says of inputs ``[samples, ...]``, as one tensor ``[samples, *outputs]``."""
        looks = torch.is_grad_enabled() and task not in self._checked
        started = clock() if looks else 0
        found = as_data(self._models[task](raw(x)))
        tensors = leaves(found)
        for path, leaf in tensors:
            if not isinstance(leaf, Tensor) or leaf.ndim < 1 or len(leaf) != len(x):
                raise ValueError(
                    f"the model of task {task} must return [samples, ...] with samples = "
                    f"{len(x)}, a tensor or a tuple or dict of them, got {shown(leaf)}"
                    f"{f' at {path}' if path else ''}."
                )
            if leaf.device != x.device:
                raise ValueError(
                    f"the model of task {task} answers on {leaf.device} when it is asked about inputs on "
                    f"{x.device}. Move model and samples to one device."
                )
        answers, layout = packed(found, 1), layout_of(found, 1)
        sizes = [list(leaf.shape[1:]) for _, leaf in tensors]
        if not self._layout:
            self._layout.append(layout)
            self._sizes.extend(sizes)
        elif layout != self._layout[0] or sizes != self._sizes:
            raise ValueError(
                "all models must return predictions of one shape, got "
                f"{self._sizes} and, of task {task}, {sizes}."
            )
        if looks:  # once: it is the same inner loop whatever the model is asked
            self._checked.add(task)
            _check_graph([leaf for _, leaf in tensors], task, started)
        return answers


def _check_graph(found: list[Any], task: int, started: int) -> None:
    if not any(leaf.requires_grad for leaf in found):
        raise ValueError(without_gradient(task))
    if any(backward_has_passed(leaf, started) for leaf in found):
        raise RuntimeError(
            f"backward() has passed through task {task}'s inner loop already and freed its graph, "
            "which the relation term needs. Add the tasks' losses up, and call backward() once: "
            "(loss + tasks.penalty()).backward()."
        )
