"""Models that were adapted elsewhere, asked as an engine asks its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from trlearner.engines import loop
from trlearner.functional import per_task
from trlearner.graph_state import backward_has_passed, clock
from trlearner.learners.protocol import Learner
from trlearner.seam import Engine, InnerLoop, TaskLearner
from trlearner.types import Fast, LossFn, State

Predict = Callable[[Tensor], Any]
"""An adapted model: from inputs ``[samples, ...]`` to a tensor, or a tuple or dict of tensors."""


def packed(leaves: list[Tensor]) -> Tensor:
    """Predictions ``[samples, ...]`` of one or several tensors, as one ``[samples, *outputs]``."""
    return leaves[0] if len(leaves) == 1 else torch.cat([leaf.flatten(1) for leaf in leaves], 1)


def without_gradient(task: int) -> str:
    """What is told of a model that was adapted without a graph."""
    return (
        f"the predictions of task {task}'s model carry no gradient. Adapt it with a graph: not under "
        "torch.no_grad(), and without .detach() on adapted parameters (with higher: "
        "copy_initial_weights=False and track_higher_grads=True)."
    )


class Asked(Learner):
    """Models that were adapted elsewhere, as an engine asks them."""

    def __init__(self, models: list[Predict], together: bool) -> None:
        super().__init__(nn.Identity())
        self._models, self._together = models, together
        self._spec: TreeSpec | None = None
        self._sizes: list[torch.Size] = []
        self._checked: set[int] = set()

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """Nothing is adapted here."""
        raise NotImplementedError

    def predict(self, state: State, fast: Fast, features: Tensor) -> Tensor:
        """What one model says of inputs ``[samples, ...]``, as one tensor ``[samples, *outputs]``."""
        started = clock()
        task = int(fast["model"])
        found, spec = tree_flatten(self._models[task](features))
        for leaf in found:
            if not isinstance(leaf, Tensor) or leaf.ndim < 1 or len(leaf) != len(features):
                got = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"the model of task {task} must return [samples, ...] with samples = "
                    f"{len(features)}, a tensor or a tuple or dict of them, got {got}."
                )
            if leaf.device != features.device:
                raise ValueError(
                    f"the model of task {task} answers on {leaf.device} when it is asked about inputs on "
                    f"{features.device}. Move model and samples to one device."
                )
        sizes = [leaf.shape[1:] for leaf in found]
        if self._spec is None:
            self._spec, self._sizes = spec, sizes
        elif (spec, sizes) != (self._spec, self._sizes):
            raise ValueError(
                "all models must return predictions of one shape, got "
                f"{[list(s) for s in self._sizes]} and, of task {task}, {[list(s) for s in sizes]}."
            )
        self._check_graph(found, task, started)
        return packed(found)

    def unpacked(self, predictions: Tensor) -> Any:
        """Mixed predictions ``[queries, *outputs]``, as the models return theirs."""
        assert self._spec is not None
        if len(self._sizes) == 1:
            return tree_unflatten([predictions], self._spec)
        parts = predictions.split([size.numel() for size in self._sizes], 1)
        leaves = [p.reshape(-1, *size) for p, size in zip(parts, self._sizes, strict=True)]
        return tree_unflatten(leaves, self._spec)

    def couples_samples(self) -> bool:
        """Unless the user says otherwise, nothing is known of other people's models."""
        return not self._together

    def asking(self) -> Engine:
        """An engine that asks the models; adaptation is behind them."""

        def cross(
            learner: TaskLearner,
            state: State,
            fast: Fast,
            features: Tensor,
            mask: Tensor | None,
            neighbours: Tensor | None,
        ) -> Tensor:
            models, tasks = fast["model"], len(features)
            asked = models[:, None].expand(-1, tasks) if neighbours is None else models[neighbours]
            if neighbours is None and mask is None and self._together:
                joined = [self.predict(state, {"model": j}, features.flatten(0, 1)) for j in models]
                return torch.stack(joined).unflatten(1, (tasks, -1))
            return torch.stack(
                [
                    per_task(
                        lambda i, keep, row=row: self.predict(  # type: ignore[misc]
                            state, {"model": row[i]}, features[i][keep]
                        ),
                        mask,
                        tasks,
                    )
                    for row in asked
                ]
            )

        def loss(loss_fn: LossFn, predictions: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
            def unpacking(one: Tensor, targets: Tensor) -> Tensor:
                return loss_fn(self.unpacked(one), targets)

            # A plain tensor needs no unpacking: what was found out about the loss is then remembered.
            single = self._spec is not None and self._spec.is_leaf()
            return loop.loss(loss_fn if single else unpacking, predictions, y, mask)

        def embed(learner: TaskLearner, state: State, x: Tensor, mask: Tensor | None) -> Tensor:
            return x

        def nothing(*_: Any) -> Any:
            raise NotImplementedError

        return Engine("collected", embed, nothing, nothing, cross, loss)

    def _check_graph(self, found: list[Any], task: int, started: int) -> None:
        if not torch.is_grad_enabled() or task in self._checked:
            return
        self._checked.add(task)  # it is the same inner loop whatever the model is asked
        if not any(leaf.requires_grad for leaf in found):
            raise ValueError(without_gradient(task))
        if any(backward_has_passed(leaf, started) for leaf in found):
            raise RuntimeError(
                f"backward() has passed through task {task}'s inner loop already and freed its graph, "
                "which the relation term needs. Add the tasks' losses up, and call backward() once: "
                "(loss + tasks.penalty()).backward()."
            )
