"""An adapt function of the user's own, as a whole meta-step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from trlearner.base.checks import check_function
from trlearner.base.types import LossFn
from trlearner.engines.collected_models import Predict
from trlearner.regularizer import collect
from trlearner.regularizer.meta_step import looks
from trlearner.regularizer.output import Output
from trlearner.tasks.batch import TaskBatch, check_batch
from trlearner.tasks.loss import task_loss
from trlearner.tasks.nested import as_data, per_task, raw
from trlearner.tasks.samples import Pair

Adapt = Callable[[Pair], Predict]


@runtime_checkable
class Regularizer(collect.Regularizer, Protocol):
    """What a meta-step needs of `TRLearner`."""

    loss_fn: LossFn

    def collect(self, *, ways: int | None) -> collect.Collected:
        """Collects tasks."""


class Regularized:
    """A callable on batches; made by `TRLearner.regularize`.

    Attributes:
        adapt: The user's function, as it was.
    """

    def __init__(self, regularizer: Regularizer, adapt: Adapt) -> None:
        check_function("adapt", adapt, "(support) -> adapted model")
        self.regularizer = regularizer
        self.adapt = adapt
        functools.update_wrapper(self, adapt)

    def __call__(self, batch: TaskBatch) -> Output:
        """Adapts to every task and adds the relation term: ready for ``out.loss.backward()``."""
        check_batch(batch)
        reg = self.regularizer
        tasks, losses, answers = reg.collect(ways=batch.ways), list[Tensor](), list[Any]()
        for i in range(len(batch)):
            (xs, ys), (x, y) = batch.support.real(i), batch.query.real(i)
            support, query = (raw(xs), raw(ys)), (raw(x), raw(y))
            model = self.adapt(support)
            answers.append(as_data(model(query[0])))
            losses.append(task_loss(reg.loss_fn, answers[-1], y))
            tasks.add(model, support=support, query=query, id=batch.ids[i] if batch.ids else None)
        own, penalty = torch.stack(losses).mean(), tasks.penalty()
        term = tasks.term
        answered = per_task(lambda i, keep: answers[i], batch.query.mask, len(batch)).detach()
        related = torch.zeros_like(own).detach() if term is None else term.loss.detach()
        seen = {} if term is None else looks(term)
        return Output(own + penalty, own.detach(), related, raw(answered), "collected", **seen)
