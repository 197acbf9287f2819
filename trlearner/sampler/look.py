"""One look-ahead over a step that was taken, on whichever engine costs least."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from trlearner.batch import TaskBatch
from trlearner.encoders.extractor import Extractor
from trlearner.engines import compiled
from trlearner.engines.choose import ENGINES
from trlearner.functional import random_state_kept
from trlearner.learners.protocol import Learner
from trlearner.sampler.evidence import NORM, Watched, support_features
from trlearner.sampler.lookahead import Direction, mean_gradient, products, task_losses
from trlearner.sampler.registry import Evidence
from trlearner.seam import Engine
from trlearner.types import Fast, LossFn, State

KINDS = ("auto", "eager", *compiled.NAMES)


class Look(NamedTuple):
    """What a look-ahead saw.

    Attributes:
        effects: ``-<grad L_val(theta'), grad L_i(theta)>`` of each task.
        evidence: Of the same tasks at theta, from the same adaptation.
    """

    effects: Tensor
    evidence: Evidence


def look(
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    direction: Direction,
    loss_fn: LossFn,
    extractor: Extractor | None,
) -> Look:
    """The look-ahead over a step on `batch` at `state`.

    Args:
        engine: Runs the tasks.
        learner: Adapts.
        state: theta, its parameters and buffers before the step.
        batch: The tasks of the step.
        direction: The gradient of the held-out loss after it, by the state's names.
        loss_fn: For one task.
        extractor: As in `support_features`.
    """
    wanted = {f"direction.{n}": t for n, t in direction.items()}

    def function(at: State, tasks: TaskBatch, given: dict[str, Tensor]) -> dict[str, Tensor]:
        along = {n.removeprefix("direction."): t for n, t in given.items()}
        return _look(engine, learner, at, tasks, along, loss_fn, extractor)

    here = {n: t.detach() for n, t in state.items()}
    with random_state_kept(batch.query.x):
        if engine.name in compiled.NAMES:
            facts = {"purpose": "look-ahead", "loss function": loss_fn, "features of": extractor}
            found = compiled.evaluate(function, engine, learner, here, batch, wanted, facts)
        else:
            found = function(here, batch, wanted)
    support = batch.support
    features = found["features"][:, : support.x.shape[1]]
    evidence = Evidence(features, support.y, support.mask, support.ways, found["norm"])
    return Look(-found["products"], evidence)


def _look(
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    direction: Direction,
    loss_fn: LossFn,
    extractor: Extractor | None,
) -> dict[str, Tensor]:
    watched, norms = Watched(learner), list[Tensor]()

    def adapt(*args) -> Fast:  # type: ignore[no-untyped-def]
        fast = engine.adapt(*args)
        norms.append(fast.pop(NORM))
        return fast

    telling = Engine(engine.name, engine.embed, adapt, engine.predict, engine.cross, engine.loss)
    losses, found = products(
        lambda at: task_losses(telling, watched, at, batch, loss_fn, learner.steps),
        state,
        direction,
    )
    features = support_features(extractor, engine, learner, state, batch.support)
    return {
        "losses": losses,
        "products": found,
        "norm": norms[0].detach(),
        "features": features,
    }


def held_out_gradient(
    engine: Engine, learner: Learner, batch: TaskBatch, loss_fn: LossFn
) -> dict[str, Tensor]:
    """The gradient of a batch's mean loss where the learner stands, by the state's names."""
    eager = eager_engine(engine)
    with torch.enable_grad():
        state = learner.state()
    with random_state_kept(batch.query.x):
        return mean_gradient(
            lambda at: task_losses(eager, learner, at, batch, loss_fn, learner.steps), state
        )


def looking_engine(kind: str, engine: Engine, learner: Learner) -> Engine:
    """The engine for look-aheads of a learner that trains on `engine`.

    ``"auto"`` replays a trace, or runs a compiled graph where the step does, where a step is many small
    operations: that halves the work that is Python's. Where models convolve a graph would save next to
    nothing and take minutes to make.
    """
    if kind == "eager" or (kind == "auto" and convolves(learner)):
        return eager_engine(engine)
    if kind in compiled.NAMES:
        return ENGINES[kind]
    return compiled.TRACED if engine.name == "batched" else _graph_or_eager(engine)


def eager_engine(engine: Engine) -> Engine:
    """The same way to run tasks, but one that autograd follows and that can be told what to watch."""
    if engine.name == "higher":
        return ENGINES["loop"]
    return ENGINES["batched"] if engine.name in compiled.NAMES else engine


def convolves(learner: Learner) -> bool:
    """Whether arithmetic outweighs the number of operations."""
    return any(isinstance(module, _ConvNd) for module in learner.modules())


def _graph_or_eager(engine: Engine) -> Engine:
    return engine if engine.name in compiled.NAMES else eager_engine(engine)
