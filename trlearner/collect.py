"""The plug-in for existing loops: adapted models are collected, and the relation term comes out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from trlearner.batch import TaskBatch
from trlearner.encoders.protocol import Encoder
from trlearner.encoders.update import UpdateEncoder
from trlearner.engines import loop
from trlearner.functional import per_task
from trlearner.graph_state import backward_has_passed, clock
from trlearner.learners.protocol import Learner
from trlearner.output import Term
from trlearner.samples import Pair
from trlearner.seam import Engine, InnerLoop, TaskLearner
from trlearner.two_phase import Adapt, Answer, Cut, cut
from trlearner.types import Fast, LossFn, State
from trlearner.warn import warn

Predict = Callable[[Tensor], Any]


@runtime_checkable
class Regularizer(Protocol):
    """What collecting needs of `TRLearner`."""

    lam: float
    encoder: Encoder
    loss_fn: LossFn

    def check_options(self) -> None:
        """Refuse options that make no sense."""

    def term_of(self, learner: Learner, engine: Engine, batch: TaskBatch) -> Term:
        """The relation term of models that were adapted elsewhere."""


class Collected:
    """The tasks of one meta-step of a loop of the user's own; made by `TRLearner.collect`.

    Attributes:
        term: L_TR, relations and weights, once `penalty` was called.

    Args:
        regularizer: Computes the term.
        reduction: ``"mean"``, or ``"sum"`` in a loop that does not divide by the number of tasks.
        together: Ask each model once for all tasks' queries, instead of task by task. It is faster, and
            right only where no sample's prediction depends on the others (no BatchNorm in training mode).
        ways: The number of classes, which alignment needs.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        reduction: Literal["mean", "sum"] = "mean",
        together: bool = False,
        ways: int | None = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}.")
        self.regularizer = regularizer
        self.reduction = reduction
        self.together = together
        self.ways = ways
        self.term: Term | None = None
        self._models: list[Predict] = []
        self._tasks: list[tuple[Pair, Pair]] = []
        self._ids: list[Hashable] = []
        self._closed = False

    def add(
        self,
        predict: Predict,
        *,
        support: Pair,
        query: Pair,
        id: Hashable | None = None,
    ) -> None:
        """One more task.

        Args:
            predict: The task's adapted model: any callable from inputs ``[samples, ...]`` to predictions,
                a tensor, or a tuple or dict of tensors, whose first axis is ``[samples]``.
            support: Its support samples ``(x [samples, ...], y [samples, ...])``.
            query: Its query samples.
            id: The task's name, for looking.

        Raises:
            TypeError: `predict` cannot be called.
            ValueError: This model was added before.
            RuntimeError: `penalty` was called already.
        """
        if self._closed:
            raise RuntimeError(
                "penalty() was called already: these tasks are done. Start the next meta-step with "
                "another reg.collect()."
            )
        if not callable(predict):
            raise TypeError(
                f"predict must be a callable from inputs to predictions, got {type(predict).__name__}."
            )
        if any(predict is model for model in self._models):
            raise ValueError(
                "predict is the very model of a task that was added before. If your inner loop changes "
                "one module in place, both tasks would be asked with the last one's parameters: add a "
                "function of each task's own, e.g. lambda x, p=dict(net.named_parameters()): "
                "torch.func.functional_call(net, p, (x,))."
            )
        self._models.append(predict)
        self._tasks.append((support, query))
        self._ids.append(len(self._ids) if id is None else id)

    def add_task(
        self,
        adapt: Adapt,
        predict: Answer,
        *,
        support: Pair,
        query: Pair,
        id: Hashable | None = None,
        model: nn.Module | None = None,
    ) -> None:
        """One more task, of which `backward` will keep no graph; in place of `add`.

        Args:
            adapt: From the support pair to the adapted parameters: a tensor, or a tuple, list or dict of
                them. It is called twice, with the same random draws.
            predict: ``(adapted parameters, x [samples, ...]) -> predictions``.
            support: As in `add`.
            query: As in `add`.
            id: As in `add`.
            model: Whose buffers (running statistics) are to be as one call of `adapt` leaves them.
        """
        self.add(cut(adapt, predict, support, model), support=support, query=query, id=id)

    def backward(self, loss_fn: LossFn | None = None) -> Tensor:
        """The whole meta-step's backward pass: the tasks' own losses and the relation term.

        It equals ``(loss + tasks.penalty()).backward()`` of all tasks in one graph, but keeps the graph of
        one inner loop at a time.

        Args:
            loss_fn: The tasks' own loss; by default the regularizer's.

        Returns:
            The loss, for looking.

        Raises:
            RuntimeError: Tasks were added by `add`, or `penalty` was called.
        """
        tasks = [model for model in self._models if isinstance(model, Cut)]
        if self._closed or len(tasks) < len(self._models):
            raise RuntimeError(
                "backward() is for tasks that were added by add_task(adapt, predict, ...), all of them, "
                "and computes the penalty itself."
            )
        loss_fn = loss_fn or self.regularizer.loss_fn
        losses = [loss_fn(task(x), y) for task, (_, (x, y)) in zip(tasks, self._tasks, strict=True)]
        penalty = self.penalty()
        own = torch.stack(losses)
        loss = (own.sum() if self.reduction == "sum" else own.mean()) + penalty
        loss.backward()
        for task in tasks:
            task.finish()
        return loss.detach()

    def penalty(self) -> Tensor:
        """λ · L_TR of the tasks that were added, to be added to the loop's own loss.

        Raises:
            RuntimeError: It was called before, or the tasks' graphs are gone.
            ValueError: There is no task, or something about the tasks does not fit.
        """
        if self._closed:
            raise RuntimeError(
                "penalty() was called already. Start the next meta-step with another reg.collect()."
            )
        self._closed = True
        if not self._models:
            raise ValueError(
                "no task was added: call add(predict, support=..., query=...) for each."
            )
        regularizer = self.regularizer
        regularizer.check_options()
        if regularizer.lam == 0:
            return self._nothing()
        if isinstance(regularizer.encoder, UpdateEncoder):
            raise ValueError(
                "UpdateEncoder looks at what a trlearner learner changed, which a loop of your own does "
                "not show. Use InputEncoder, LabelledEncoder or FunctionEncoder."
            )
        batch = TaskBatch.from_tasks(self._tasks, ids=tuple(self._ids), ways=self.ways)
        if len(batch) == 1:
            warn("a batch of one task has no neighbours: its relation loss is 0.")
            return self._nothing()
        asked = Asked(self._models, self.together)
        self.term = regularizer.term_of(asked, asked.asking(), batch)
        scale = len(batch) if self.reduction == "sum" else 1
        return regularizer.lam * scale * self.term.loss

    def _nothing(self) -> Tensor:
        return self._tasks[0][1][0].new_zeros((), dtype=torch.get_default_dtype())

    def __len__(self) -> int:
        return len(self._models)

    def __enter__(self) -> Collected:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._models and not self._closed:
            warn("tasks were added, but penalty() was never called: the relation term is missing.")


def packed(leaves: list[Tensor]) -> Tensor:
    """Predictions ``[samples, ...]`` of one or several tensors, as one ``[samples, *outputs]``."""
    return leaves[0] if len(leaves) == 1 else torch.cat([leaf.flatten(1) for leaf in leaves], 1)


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

            return loop.loss(unpacking, predictions, y, mask)

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
            raise ValueError(
                f"the predictions of task {task}'s model carry no gradient. Adapt it with a graph: not "
                "under torch.no_grad(), and without .detach() on adapted parameters (with higher: "
                "copy_initial_weights=False and track_higher_grads=True)."
            )
        if any(backward_has_passed(leaf, started) for leaf in found):
            raise RuntimeError(
                f"backward() has passed through task {task}'s inner loop already and freed its graph, "
                "which the relation term needs. Add the tasks' losses up, and call backward() once: "
                "(loss + tasks.penalty()).backward()."
            )
