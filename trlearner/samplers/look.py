"""One look-ahead over a step that was taken, on whichever engine costs least."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from trlearner.base.functional import below, random_state_kept
from trlearner.base.types import Fast, LossFn, State
from trlearner.engines import compiled
from trlearner.engines.adapted import Engine
from trlearner.engines.choose import ENGINES, check_recompute, recomputes, without_graph
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.samplers.evidence import NORM, Watched, support_features
from trlearner.samplers.lookahead import Direction, mean_gradient, product, products, task_losses
from trlearner.samplers.registry import Evidence
from trlearner.tasks.batch import TaskBatch

KINDS = ("auto", "eager", compiled.ENGINE.name, compiled.TRACED.name)


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
    foreign = {} if extractor is None else extractor.foreign(learner)
    wanted = {f"direction.{n}": t for n, t in direction.items()}
    wanted |= {f"extractor.{n}": t.detach() for n, t in foreign.items()}

    def function(at: State, tasks: TaskBatch, given: dict[str, Tensor]) -> dict[str, Tensor]:
        along, own = below("direction.", given), below("extractor.", given)
        features = support_features(extractor, engine, learner, at, own, tasks.support)
        return {**_look(engine, learner, at, tasks, along, loss_fn), "features": features}

    facts = {"purpose": "look-ahead", "features of": extractor}
    found = _evaluated(function, engine, learner, state, batch, wanted, loss_fn, facts)
    support = batch.support
    features = found["features"][:, : support.x.shape[1]]
    evidence = Evidence(features, support.y, support.mask, support.ways, found["norm"])
    return Look(-found["products"], evidence)


def _evaluated(
    function: Callable[[State, TaskBatch, dict[str, Tensor]], dict[str, Tensor]],
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    more: dict[str, Tensor],
    loss_fn: LossFn,
    facts: Mapping[str, Hashable],
) -> dict[str, Tensor]:
    """``function(state, batch, more)``, from a graph where the engine makes them; no trace is left."""
    here = {n: t.detach() for n, t in state.items()}
    with random_state_kept(batch.query.x):
        if not engine.graphs:
            return function(here, batch, more)
        told = {**facts, "loss function": loss_fn}
        return compiled.evaluate(function, engine, learner, here, batch, more, told)


def _look(
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    direction: Direction,
    loss_fn: LossFn,
) -> dict[str, Tensor]:
    watched, norms = Watched(learner), list[Tensor]()

    def adapting(*args) -> Fast:  # type: ignore[no-untyped-def]
        fast = engine.adapt(*args)
        norms.append(fast[NORM])
        return fast

    telling = replace(engine, adapt=adapting)

    def losses_of(tasks: TaskBatch) -> Callable[[State], Tensor]:
        return lambda at: task_losses(telling, watched, at, tasks, loss_fn, learner.steps)

    if (
        engine.name == "loop"
    ):  # every task has a graph of its own: its gradient costs no more than a step
        tasks = [losses_of(batch[i : i + 1]) for i in range(len(batch))]
        found = torch.stack([product(one, state, direction) for one in tasks])
    else:
        found = products(losses_of(batch), state, direction)[1]
    return {"products": found, "norm": torch.cat(norms).detach()}


def held_out_gradient(
    engine: Engine, learner: Learner, batch: TaskBatch, loss_fn: LossFn
) -> dict[str, Tensor]:
    """The gradient of a batch's mean loss where the learner stands, by the state's names.

    Args:
        engine: Runs the tasks.
        learner: Whose parameters and buffers.
        batch: The tasks.
        loss_fn: For one task.
    """
    with torch.enable_grad():
        state = learner.state()
    trained = tuple(n for n, t in state.items() if t.requires_grad)

    def function(at: State, tasks: TaskBatch, _: dict[str, Tensor]) -> dict[str, Tensor]:
        here = {n: t.detach().requires_grad_(n in trained) for n, t in at.items()}
        return mean_gradient(
            lambda s: task_losses(engine, learner, s, tasks, loss_fn, learner.steps), here
        )

    facts = {"purpose": "gradient", "trained": trained}
    return _evaluated(function, engine, learner, state, batch, {}, loss_fn, facts)


def looking_engine(kind: str, engine: Engine, learner: Learner) -> Engine:
    """The engine for look-aheads of a learner that trains on `engine`.

    ``"auto"`` replays a trace, or runs a compiled graph where the step does, where a step is many small
    operations: that halves the work that is Python's. Where models convolve a graph would save next to
    nothing and take minutes to make; on a CPU it is then one task after the other. No graph is made of a
    learner with ``recompute``.
    """
    check_recompute(learner, kind)
    if kind not in ("auto", "eager"):
        return ENGINES[kind]
    eager = eager_engine(engine)
    if kind == "eager" or recomputes(learner):
        return eager
    if convolves(learner):
        there = any(p.is_cuda for p in learner.parameters())
        return eager if there else ENGINES["loop"]
    if engine.graphs:
        return engine
    return compiled.TRACED if engine.together else eager


def eager_engine(engine: Engine) -> Engine:
    """The same way to run tasks, but one that autograd follows and that can be told what to watch."""
    if engine.name == "higher":
        return ENGINES["loop"]
    return without_graph(engine)


def convolves(learner: Learner) -> bool:
    """Whether arithmetic outweighs the number of operations."""
    return any(isinstance(module, _ConvNd) for module in learner.modules())
