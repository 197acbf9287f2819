"""Looks ahead and scores tasks with one learner after another, on engines that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from trlearner.base.functional import random_state_kept
from trlearner.base.types import LossFn
from trlearner.base.warn import warn
from trlearner.engines.adapted import Engine
from trlearner.engines.blame import blaming, own_mistake
from trlearner.engines.graph import NotCompilable
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.samplers.check import check_kind
from trlearner.samplers.evidence import gather
from trlearner.samplers.look import (
    KINDS,
    Look,
    eager_engine,
    held_out_gradient,
    look,
    looking_engine,
)
from trlearner.samplers.lookahead import Direction
from trlearner.samplers.loss import loss_for
from trlearner.samplers.marked import Marked
from trlearner.samplers.registry import Evidence
from trlearner.tasks.batch import TaskBatch

T = TypeVar("T")


class Looker:
    """What an adaptive sampler sees of tasks.

    Args:
        kind: The engine for look-aheads; see `looking_engine`.
        extractor: As in `support_features`.
    """

    def __init__(self, kind: str, extractor: Extractor | None) -> None:
        check_kind(kind, KINDS)
        self.kind, self.extractor = kind, extractor

    def gradient(
        self, learner: Learner, batch: TaskBatch, loss: LossFn | None
    ) -> dict[str, Tensor]:
        """Of the batch's mean loss, where the learner stands."""
        return self._run(
            learner,
            batch,
            loss,
            lambda engine, loss_fn: held_out_gradient(engine, learner, batch, loss_fn),
        )

    def evidence(self, learner: Learner, batch: TaskBatch, loss: LossFn | None) -> Evidence:
        """What scores are made of, where the learner stands."""
        loss_fn = loss_for(loss, batch)
        engine = eager_engine(learner.engine_for(batch.support, loss_fn))
        with random_state_kept(batch.support.x):
            return gather(engine, learner, learner.state(), batch.support, loss_fn, self.extractor)

    def look(
        self, learner: Learner, step: Marked, direction: Direction, loss: LossFn | None
    ) -> Look:
        """The look-ahead over a step."""
        return self._run(
            learner,
            step.batch,
            loss,
            lambda engine, loss_fn: look(
                engine, learner, step.state, step.batch, direction, loss_fn, self.extractor
            ),
        )

    def _run(
        self,
        learner: Learner,
        batch: TaskBatch,
        loss: LossFn | None,
        function: Callable[[Engine, LossFn], T],
    ) -> T:
        """On the engine for looks; without graphs once one could not be made."""
        loss_fn = loss_for(loss, batch)
        parts = {"batch.support": batch.support}
        engine = learner.engine_for(batch.support, loss_fn, batch.query)
        with blaming(learner, loss_fn, parts):
            try:
                return function(looking_engine(self.kind, engine, learner), loss_fn)
            except NotCompilable as error:
                if self.kind != "auto" or own_mistake(learner, loss_fn, parts):
                    raise
                self.kind = "eager"
                warn(f"the task sampler goes on without graphs, for {error}")
                return function(eager_engine(engine), loss_fn)
