"""A meta-step from a graph: what goes in by name, and what comes out."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from trlearner.base.functional import below, precision
from trlearner.engines import compiled
from trlearner.engines.adapted import Engine
from trlearner.engines.compiled import STATE
from trlearner.engines.graph import NotCompilable
from trlearner.learners.protocol import Learner
from trlearner.regularizer.meta_step import Parts, StepState, meta_step
from trlearner.regularizer.output import Draws, Output
from trlearner.tasks.batch import TaskBatch

REGULARIZER = STATE + "regularizer."
OUTPUTS = tuple(field.name for field in fields(Output) if field.name != "engine")


def graph_step(
    parts: Parts,
    owner: nn.Module,
    engine: Engine,
    learner: Learner,
    state: StepState,
    batch: TaskBatch,
    draws: Draws,
) -> Output:
    """As `meta_step`, from a graph that is made at the first call of its kind.

    Where tasks are masked, their sizes are rounded up, so that few graphs serve many sizes.

    Args:
        parts: Of the regularizer; λ and the temperature may change without a new graph.
        owner: The regularizer: its graphs go with it.
        engine: One that makes graphs.
        learner: As in `meta_step`.
        state: As in `meta_step`.
        batch: As in `meta_step`.
        draws: As in `meta_step`.

    Raises:
        NotCompilable: The step cannot be traced or compiled, with the reason and what to do.
    """
    if draws.related and parts.options.chunk_size == "auto":
        raise NotCompilable(
            "chunk_size='auto' looks at every step's memory, which a graph cannot. Pass a number, or use "
            "engine='batched'."
        )
    queries = batch.query.x.shape[1]
    batch, draws = _rounded(batch, draws)
    inputs = _inputs(parts, state, batch, draws)

    def function(given: dict[str, Tensor]) -> dict[str, Tensor]:
        now = Draws(draws.related, given.get("chosen queries"), given.get("task weights"))
        there = StepState(below(STATE, given), below(REGULARIZER, given))
        tasks = compiled.batch_in(batch, given)
        at = parts
        if draws.related:
            at = parts._replace(lam=given["lam"], temperature=given["temperature"])
        out = meta_step(at, engine, learner, there, tasks, now)
        found = {name: getattr(out, name) for name in OUTPUTS}
        return {name: t for name, t in found.items() if t is not None}

    options = vars(parts.options) if draws.related else {}
    facts = {"relation term": draws.related, "ways": batch.ways}
    facts |= {name: value for name, value in options.items() if not callable(value)}
    reads = {
        "settings of the learner": learner,
        "settings of the regularizer": owner if draws.related else parts.loss_fn,
    }
    reads |= {name: value for name, value in options.items() if callable(value)}
    found = compiled.run(function, inputs, engine, learner, owner, facts, reads)
    if found["predictions"].shape[1] > queries:
        found["predictions"] = found["predictions"][:, :queries]
    return Output(**{name: found.get(name) for name in OUTPUTS}, engine=engine.name)  # type: ignore[arg-type]


def _inputs(parts: Parts, state: StepState, batch: TaskBatch, draws: Draws) -> dict[str, Tensor]:
    """Everything that may change from step to step, by name."""
    query = batch.query.x
    found = {STATE + name: tensor for name, tensor in state.learner.items()}
    found |= {REGULARIZER + name: tensor for name, tensor in state.regularizer.items()}
    found |= compiled.parts("support", batch.support) | compiled.parts("query", batch.query)
    if draws.related:
        # Tokens have no precision of their own; then it is that of the parameters.
        dtype = query.dtype
        if not query.is_floating_point():
            dtype = precision({**state.learner, **state.regularizer})
        for name, value in (("lam", parts.lam), ("temperature", parts.temperature)):
            if isinstance(value, Tensor):  # not a copy: a temperature may be learned
                found[name] = value.to(query.device, dtype)
            else:  # `torch.tensor` would copy from the CPU, and wait for a GPU
                found[name] = torch.full((), value, dtype=dtype, device=query.device)
    if draws.queries is not None:
        found["chosen queries"] = draws.queries
    if draws.task_weights is not None:
        found["task weights"] = draws.task_weights
    return found


def _rounded(batch: TaskBatch, draws: Draws) -> tuple[TaskBatch, Draws]:
    """Masked parts, and a choice of queries, padded to sizes of which there are few."""
    before, batch = batch.query.x.shape[1], compiled.rounded(batch)
    if draws.queries is not None and batch.query.x.shape[1] > before:
        # What is added points to padding.
        missing = compiled.round_up(draws.queries.shape[1]) - draws.queries.shape[1]
        padding = draws.queries.new_full((len(batch), missing), before)
        draws = replace(draws, queries=torch.cat([draws.queries, padding], 1))
    return batch, draws
