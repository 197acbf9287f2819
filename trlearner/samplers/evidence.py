"""What scores are made of, taken from a task's adaptation while it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trlearner.base.types import Fast, LossFn, State
from trlearner.engines.adapted import Engine, adapt
from trlearner.engines.task_learner import Gradients, InnerLoop, Through
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.samplers.registry import Evidence
from trlearner.samplers.scores import difficulty
from trlearner.tasks.samples import Samples

NORM = "support gradient's norm"
"""Where `Watched` puts it among what adapts."""


class Watched(Through[Learner]):
    """A learner whose adaptation also tells the norm of its first gradient; nothing is computed twice."""

    def predict(self, state: State, fast: Fast, features: Tensor) -> Tensor:
        """As the learner does it."""
        return self.learner.predict(state, {n: t for n, t in fast.items() if n != NORM}, features)

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """As the learner does it, with `NORM` beside what adapted."""
        norms: list[Tensor] = []

        def gradient(fast: Fast, first_order: bool) -> Gradients:
            found = loop.gradient(fast, first_order)
            if not norms:
                there = {n: g.detach() for n, g in found.items() if g is not None}
                norms.append(loop.lift(_norm)(there))
            return found

        fast = self.learner.inner(state, replace(loop, gradient=gradient))
        if not norms:
            norms.append(
                loop.lift(lambda h: h.new_zeros((), dtype=torch.get_default_dtype()))(loop.features)
            )
        return {**fast, NORM: norms[0]}


def _norm(gradients: dict[str, Tensor]) -> Tensor:
    return difficulty({n: g[None] for n, g in gradients.items()})[0]


def support_features(
    extractor: Extractor | None,
    engine: Engine,
    learner: Any,
    state: State,
    own: State,
    support: Samples,
) -> Tensor:
    """``[tasks, samples, features]``, without a graph: the extractor's, or else what the learner embeds.

    Args:
        extractor: May be a part of the learner's model.
        engine: Runs the tasks.
        learner: Whose functions are run.
        state: Its parameters and buffers.
        own: The extractor's other tensors, by its own names.
        support: The tasks' samples.
    """
    with torch.no_grad():
        if extractor is not None:
            found = extractor.run(learner, state, own, support.x, support.mask)
        else:
            found = engine.embed(learner, state, support.x, support.mask)
    found = found.flatten(2) if found.ndim > 2 else found[..., None]
    return found if found.is_floating_point() else found.to(torch.get_default_dtype())


def gather(
    engine: Engine,
    learner: Learner,
    state: State,
    support: Samples,
    loss_fn: LossFn,
    extractor: Extractor | None,
) -> Evidence:
    """The evidence of tasks that nothing else is adapted to: one inner step, no graph.

    Args:
        engine: Runs the tasks.
        learner: Adapts.
        state: Its parameters and buffers.
        support: The tasks' samples.
        loss_fn: For one task.
        extractor: As in `support_features`.
    """
    with torch.no_grad():
        seen = support_features(extractor, engine, learner, state, {}, support)
        models = adapt(engine, Watched(learner), state, support, loss_fn, min(1, learner.steps))
    return Evidence(seen, support.y, support.mask, support.ways, models.fast[NORM])
