"""The plug-in for existing loops: adapted models are collected, and the relation term comes out."""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trlearner.base.checks import (
    check_flag,
    check_function,
    check_instance,
    check_whole,
)
from trlearner.base.types import LossFn, SeesParts
from trlearner.base.warn import warn
from trlearner.engines.collected_models import CollectedModels, Predict, without_gradient
from trlearner.engines.handed_over import bindings, check_parameters, rebound, same
from trlearner.engines.second_order import explain_backward, sound
from trlearner.regularizer.output import Term
from trlearner.regularizer.two_phase import Adapt, Answer, Cut, cut
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.loss import task_loss
from trlearner.tasks.nested import as_data, leaves
from trlearner.tasks.samples import Pair, check_pair


@runtime_checkable
class Regularizer(Protocol, metaclass=SeesParts):
    """What collecting needs of `TRLearner`."""

    lam: float
    loss_fn: LossFn

    def term_of(self, models: CollectedModels, batch: TaskBatch) -> Term:
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
        start: Where every task's adaptation starts, the parameters of which `add` is given `fast`; for
            `UpdateEncoder`.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        reduction: Literal["mean", "sum"] = "mean",
        together: bool = False,
        ways: int | None = None,
        start: Any = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}.")
        check_flag("together", together)
        check_whole("ways", ways, optional=True)
        self.regularizer = regularizer
        self.reduction = reduction
        self.together = together
        self.ways = ways
        self.term: Term | None = None
        self._models: list[Predict] = []
        self._bound: list[dict[str, Any]] = []
        self._tasks: list[tuple[Pair, Pair]] = []
        self._ids: list[Hashable] = []
        self._losses: list[Tensor | None] = []
        self._fast: list[Any] = []
        self._start = check_parameters("start", start)
        self._closed = False

    def add(
        self,
        predict: Predict,
        *,
        support: Pair,
        query: Pair,
        id: Hashable | None = None,
        loss: Tensor | None = None,
        fast: Any = None,
    ) -> None:
        """One more task.

        Args:
            predict: The task's adapted model: any callable from inputs ``[samples, ...]`` to predictions,
                a tensor, or a tuple or dict of tensors, whose first axis is ``[samples]``.
            support: Its support samples ``(x [samples, ...], y [samples, ...])``.
            query: Its query samples.
            id: The task's name, for a monitor; it counts where all tasks have one.
            loss: The task's own loss, in a loop that called its ``backward()`` here: leave that to
                `backward`, at the end, in place of `penalty`.
            fast: The task's adapted parameters with their graph, in the structure and order of `start`;
                for `UpdateEncoder`.

        Raises:
            TypeError: `predict` cannot be called, or `loss` is no tensor of one number.
            ValueError: This model was added before, or `loss` carries no gradient.
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
        check_pair("support", support)
        check_pair("query", query)
        if any(same(predict, model) for model in self._models):
            raise ValueError(
                "predict is the very model of a task that was added before: the same code reads the same "
                "variables. If your inner loop changes one module in place, or sets one variable anew, both "
                "tasks would be asked with the last one's parameters: add a function of each task's own, "
                "e.g. lambda x, fast=fast: torch.func.functional_call(net, fast, (x,))."
            )
        if loss is not None:
            _check_loss(loss)
        for i, task in enumerate(self._tasks):
            if all(a is b for a, b in zip((*support, *query), (*task[0], *task[1]), strict=False)):
                warn(
                    f"task {len(self)} has the very samples of task {i}: the same task was added twice, and "
                    "each of the two will be asked for the other."
                )
        self._fast.append(check_parameters("fast", fast))
        self._losses.append(loss)
        self._models.append(predict)
        self._bound.append(bindings(predict))
        self._tasks.append((support, query))
        self._ids.append(id)

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
        check_function("adapt", adapt, "(support) -> adapted parameters")
        check_function("predict", predict, "(adapted parameters, x) -> predictions")
        check_pair("support", support)
        check_instance(
            "model", model, nn.Module, "Its buffers are kept; leave it out.", optional=True
        )
        made = cut(adapt, predict, support, model)
        self.add(made, support=support, query=query, id=id, fast=made.leaves)

    def backward(self, loss_fn: LossFn | None = None, scale: float | Tensor = 1.0) -> Tensor:
        """The whole meta-step's backward pass: the tasks' own losses and the relation term.

        It is for tasks that were added with their loss, and for those of `add_task`, of which it keeps the
        graph of one inner loop at a time. The gradient is that of ``(loss + tasks.penalty()).backward()``.
        Without the term (λ = 0) the losses are taken back one by one, as a loop that calls ``backward()``
        for each task does, to the last bit.

        Args:
            loss_fn: The own loss of tasks of `add_task`; by default the regularizer's.
            scale: Of the gradient: ``1 / n`` to accumulate over n meta-batches, or with a gradient scaler
                ``scaler.scale(torch.ones(()))``.

        Returns:
            The loss without the scale, for looking.

        Raises:
            RuntimeError: A task was added without its loss, or `penalty` was called.
        """
        self._check_open()
        for i, (model, loss) in enumerate(zip(self._models, self._losses, strict=True)):
            if loss is None and not isinstance(model, Cut):
                raise RuntimeError(
                    f"backward() takes the tasks' own losses back, too, and task {i} has none: "
                    "add(..., loss=loss), or add_task(adapt, predict, ...), for every task. If your loop "
                    "adds the losses up itself: (loss + tasks.penalty()).backward()."
                )
        own = self._own_losses(loss_fn or self.regularizer.loss_fn, scale)
        penalty = self._penalty()
        total = torch.stack(own).sum() + penalty
        roots = (
            [total] if self.term is not None else [share for share in own if share.requires_grad]
        )
        for root in roots:  # which may share a part, such as a body that is not adapted
            _take_back(root, scale, retain_graph=root is not roots[-1])
        for model in self._models:
            if isinstance(model, Cut):
                model.finish()
        return total.detach()

    def _own_losses(self, loss_fn: LossFn, scale: float | Tensor) -> list[Tensor]:
        """Each task's share of the loss; those of `add_task` are taken back at once, and keep no graph."""
        own: list[Tensor] = []
        for i, (model, loss, (_, (x, y))) in enumerate(
            zip(self._models, self._losses, self._tasks, strict=True)
        ):
            share = loss
            if share is None:
                share = task_loss(loss_fn, as_data(model(x)), as_data(y))
            share = share if self.reduction == "sum" else share / len(self)
            if loss is None:
                if not share.requires_grad:
                    raise ValueError(without_gradient(i))
                _take_back(share, scale)
                share = share.detach()
            own.append(share)
        return own

    def penalty(self) -> Tensor:
        """λ · L_TR of the tasks that were added, to be added to the loop's own loss.

        Raises:
            RuntimeError: It was called before, the tasks' graphs are gone, or tasks have their own loss.
            ValueError: There is no task, or something about the tasks does not fit.
        """
        self._check_open()
        if any(loss is not None for loss in self._losses):
            raise RuntimeError(
                "tasks were added with their own loss, which penalty() leaves out: call tasks.backward() "
                "instead, or add without loss= and call (loss + tasks.penalty()).backward()."
            )
        return self._penalty()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(
                "penalty() was called already. Start the next meta-step with another reg.collect()."
            )

    def _check_bound(self) -> None:
        """Warns of models that read a variable which has been set anew since."""
        for i, (model, before) in enumerate(zip(self._models, self._bound, strict=True)):
            if names := rebound(model, before):
                warn(
                    f"the model of task {i} reads {', '.join(names)}, which was set anew after the task was "
                    "added: it predicts with what is there now. Hand it over when you make the function, "
                    f"e.g. lambda x, {names[0]}={names[0]}: ..."
                )
                return

    def _penalty(self) -> Tensor:
        self._closed = True
        self._check_bound()
        if not self._models:
            raise ValueError(
                "no task was added: call add(predict, support=..., query=...) for each."
            )
        regularizer = self.regularizer
        if regularizer.lam == 0:
            return self._nothing()
        _check_devices(self._tasks, regularizer)
        ids = None if None in self._ids else self._ids
        batch = TaskBatch.from_tasks(self._tasks, ids=ids, ways=self.ways)
        if len(batch) == 1:
            warn("a batch of one task has no neighbours: its relation loss is 0.")
            return self._nothing()
        self.term = regularizer.term_of(
            CollectedModels(self._models, self.together, self._fast, self._start), batch
        )
        if "collected" not in sound.get(regularizer, ()):
            explain_backward(regularizer, "collected", [self.term.loss])
        scale = len(batch) if self.reduction == "sum" else 1
        return regularizer.lam * scale * self.term.loss

    def _nothing(self) -> Tensor:
        device = as_data(self._tasks[0][1][0]).device
        zero = torch.zeros((), dtype=torch.get_default_dtype(), device=device)
        return zero.requires_grad_(torch.is_grad_enabled())  # for loops that take it back by itself

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


def _take_back(root: Tensor, scale: float | Tensor, retain_graph: bool = False) -> None:
    """``(scale * root).backward()``."""
    root.backward((torch.ones_like(root) * scale).to(root), retain_graph=retain_graph)


def _check_devices(tasks: list[tuple[Pair, Pair]], regularizer: Regularizer) -> None:
    """Refuse tasks, or a regularizer, that are not all on one device."""
    places = [
        {str(t.device) for pair in task for part in pair for _, t in leaves(as_data(part))}
        for task in tasks
    ]
    found = sorted(set().union(*places))
    if len(found) > 1:
        raise ValueError(
            f"all tasks must be on one device, got {' and '.join(found)}; the first that differs is task "
            f"{next(i for i, place in enumerate(places) if place != places[0] or len(place) > 1)}. Move "
            "the samples to your model's device before you add them: x.to(device)."
        )
    if isinstance(regularizer, nn.Module):
        other = [n for n, p in regularizer.named_parameters() if str(p.device) != found[0]]
        if other:
            raise ValueError(
                f"the tasks are on {found[0]}, but the regularizer's {', '.join(other)} not: move it, "
                f"reg.to({found[0]!r}), before you make the optimizer."
            )


def _check_loss(loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"loss must be the task's own loss, a tensor of one number, got {got}.")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            "loss carries no gradient. Pass what you called backward() on, before .item() or .detach()."
        )
