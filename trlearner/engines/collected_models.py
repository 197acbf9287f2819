"""Adapted models of a loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from trlearner.base.functional import per_task
from trlearner.base.types import LossFn, State
from trlearner.engines.adapted import Embedded, Engine
from trlearner.engines.handed_over import backward_has_passed, clock
from trlearner.tasks.loss import task_losses
from trlearner.tasks.samples import Samples

Predict = Callable[[Tensor], Any]
"""An adapted model: from inputs ``[samples, ...]`` to a tensor, or a tuple or dict of tensors."""


def packed(leaves: list[Tensor]) -> Tensor:
    """Predictions ``[samples, ...]`` of one or several tensors, as one ``[samples, *outputs]``."""
    return leaves[0] if len(leaves) == 1 else torch.cat([leaf.flatten(1) for leaf in leaves], 1)


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

    def __init__(self, models: Sequence[Predict], together: bool) -> None:
        self._models, self._together = models, together
        self._asked: Sequence[int] = range(len(models))
        # Of predictions, once it is known; shared by all parts of these models.
        self._layout: list[tuple[TreeSpec, list[torch.Size]]] = []
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

        def unpacking(one: Tensor, targets: Tensor) -> Tensor:
            return loss_fn(self.unpacked(one), targets)

        # A plain tensor needs no unpacking: what was found out about the loss is then remembered.
        single = all(spec.is_leaf() for spec, _ in self._layout)
        given = loss_fn if single else unpacking
        return task_losses(given, predictions, samples.y, samples.mask)

    def unpacked(self, predictions: Tensor) -> Any:
        """Mixed predictions ``[queries, *outputs]``, as the models return theirs."""
        ((spec, sizes),) = self._layout
        if len(sizes) == 1:
            return tree_unflatten([predictions], spec)
        parts = predictions.split([size.numel() for size in sizes], 1)
        leaves = [p.reshape(-1, *size) for p, size in zip(parts, sizes, strict=True)]
        return tree_unflatten(leaves, spec)

    def _predict(self, task: int, x: Tensor) -> Tensor:
        """What one model says of inputs ``[samples, ...]``, as one tensor ``[samples, *outputs]``."""
        looks = torch.is_grad_enabled() and task not in self._checked
        started = clock() if looks else 0
        found, spec = tree_flatten(self._models[task](x))
        for leaf in found:
            if not isinstance(leaf, Tensor) or leaf.ndim < 1 or len(leaf) != len(x):
                got = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"the model of task {task} must return [samples, ...] with samples = "
                    f"{len(x)}, a tensor or a tuple or dict of them, got {got}."
                )
            if leaf.device != x.device:
                raise ValueError(
                    f"the model of task {task} answers on {leaf.device} when it is asked about inputs on "
                    f"{x.device}. Move model and samples to one device."
                )
        sizes = [leaf.shape[1:] for leaf in found]
        if not self._layout:
            self._layout.append((spec, sizes))
        elif (spec, sizes) != self._layout[0]:
            raise ValueError(
                "all models must return predictions of one shape, got "
                f"{[list(s) for s in self._layout[0][1]]} and, of task {task}, {[list(s) for s in sizes]}."
            )
        if looks:  # once: it is the same inner loop whatever the model is asked
            self._checked.add(task)
            _check_graph(found, task, started)
        return packed(found)


def _check_graph(found: list[Any], task: int, started: int) -> None:
    if not any(leaf.requires_grad for leaf in found):
        raise ValueError(without_gradient(task))
    if any(backward_has_passed(leaf, started) for leaf in found):
        raise RuntimeError(
            f"backward() has passed through task {task}'s inner loop already and freed its graph, "
            "which the relation term needs. Add the tasks' losses up, and call backward() once: "
            "(loss + tasks.penalty()).backward()."
        )
