"""The regularized meta-step as a pure function of state, batch and draws."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trlearner import align
from trlearner.batch import TaskBatch
from trlearner.budget import within_budget
from trlearner.chunks import mixed_in_chunks
from trlearner.consistency import (
    Mixture,
    Normalize,
    mix,
    mixture_kind,
    nearest,
    relation_weights,
)
from trlearner.encoders.protocol import Encoder, HasPrototypes, embed_tasks
from trlearner.engines.choose import TOGETHER
from trlearner.functional import tensors
from trlearner.head import Body, Head
from trlearner.learners.protocol import Learner
from trlearner.options import Align, ChunkSize
from trlearner.output import Draws, Output, Term
from trlearner.questions import questions
from trlearner.relation import relation_matrix
from trlearner.rows import part_of
from trlearner.samples import Samples
from trlearner.seam import Engine, TaskLearner
from trlearner.targets import LossInState
from trlearner.types import Fast, LossFn, SeesParts, State

PREFIX = "regularizer."
"""Where the state keeps what is the regularizer's."""


@runtime_checkable
class Settings(Protocol, metaclass=SeesParts):
    """What the step needs to know of a `TRLearner`; none of it is a tensor that is trained."""

    encoder: Encoder
    loss_fn: LossFn
    normalize: Normalize
    mixture: Mixture
    align: Align
    top_k: int | None
    head: str | None
    chunk_size: ChunkSize
    memory_budget: int | None


def meta_step(
    settings: Settings,
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    draws: Draws,
) -> Output:
    """``L = mean_i loss(f_i(X_i), Y_i) + lam * L_TR``.

    Args:
        settings: What is fixed.
        engine: Runs the tasks.
        learner: Whose functions are run; its parameters are read from `state` only.
        state: The learner's parameters and buffers by name, the regularizer's under `PREFIX`.
        batch: The tasks.
        draws: λ, the temperature and the random choices.
    """
    fast, asked, predictions, losses = own_part(
        settings, engine, learner, state, batch, draws.related
    )
    own = losses.mean() if draws.task_weights is None else (draws.task_weights * losses).sum()
    seen = predictions.detach()
    if not draws.related:
        return Output(own, own.detach(), torch.zeros_like(own).detach(), seen, engine.name)
    term = relation_term(settings, engine, learner, state, batch, fast, asked, draws)
    loss, related = own + draws.lam * term.loss, term.loss.detach()
    return Output(loss, own.detach(), related, seen, engine.name, **term.looks())


class Own(NamedTuple):
    """What adaptation made of each task, and how its model does on the task's own queries."""

    fast: Fast
    asked: Tensor  # the queries as `asking` takes them: [tasks, queries, ...]
    predictions: Tensor  # [tasks, queries, ...]
    losses: Tensor  # [tasks]


def own_part(
    settings: Settings,
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    related: bool,
) -> Own:
    """The learner's own part of a meta-step; arguments as in `meta_step`, and in its draws."""
    support, query, loss_fn = batch.support, batch.query, loss_in(settings.loss_fn, state)
    features = engine.embed(learner, state, support.x, support.mask)
    fast = engine.adapt(learner, state, features, support, loss_fn, learner.steps)
    asked = engine.embed(learner, state, query.x, query.mask)
    answering: TaskLearner = learner
    if related and settings.head is not None:
        # The body once, for both parts of the loss.
        asked = engine.predict(Body(learner, settings.head), state, fast, asked, query.mask)
        answering = asking(settings, learner)
    predictions = engine.predict(answering, state, fast, asked, query.mask)
    return Own(fast, asked, predictions, engine.loss(loss_fn, predictions, query.y, query.mask))


def asking(settings: Settings, learner: Learner) -> TaskLearner:
    """Whose models the relation term asks: the learner's, or only their heads."""
    return learner if settings.head is None else Head(learner, settings.head)


def relation_term(
    settings: Settings,
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    fast: Fast,
    asked: Tensor,
    draws: Draws,
) -> Term:
    """L_TR of adapted models, and what it is made of.

    Args:
        settings: As in `meta_step`.
        engine: Asks the models.
        learner: Whose models these are.
        state: As in `meta_step`.
        batch: The tasks.
        fast: The models.
        asked: The queries, as `Own` has them.
        draws: As in `meta_step`.
    """
    embeddings = described(settings, engine, learner, state, batch, fast)
    relations = relation_matrix(embeddings, state[PREFIX + "relation.weight"])
    weights = relation_weights(
        relations, settings.normalize, temperature=draws.temperature, top_k=settings.top_k
    )
    prototypes = prototypes_of(settings, learner, state, batch)
    alignment = None if prototypes is None else aligned(settings, prototypes)
    mixed, chosen = _mixture(
        settings, engine, learner, state, batch, fast, asked, relations, weights, alignment, draws
    )
    loss_fn = loss_in(settings.loss_fn, state)
    related = engine.loss(loss_fn, mixed, chosen.y, chosen.mask).mean()
    confidence = None if alignment is None else _confidence(alignment)
    return Term(related, relations, weights, embeddings, confidence)


def described(
    settings: Settings,
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    fast: Fast,
) -> Tensor:
    """What the encoder makes of each task ``[tasks, dim]``; arguments as in `relation_term`."""
    return embed_tasks(settings.encoder, engine, learner, state, batch, fast)


def _mixture(
    settings: Settings,
    engine: Engine,
    learner: Learner,
    state: State,
    batch: TaskBatch,
    fast: Fast,
    features: Tensor,
    relations: Tensor,
    weights: Tensor,
    alignment: Tensor | None,
    draws: Draws,
) -> tuple[Tensor, Samples]:
    """Each task's (chosen) queries as its neighbours' mixture predicts them, and those queries."""
    asked_learner = asking(settings, learner)
    asked = questions(asked_learner, batch.query, features, draws.queries)
    neighbours = asked_models = None
    others = len(batch) - 1
    wanted = others if settings.top_k is None else min(settings.top_k, others)
    # Whoever asks model by model and task by task need not ask a task's own, which has no weight.
    one_by_one = engine.name not in TOGETHER
    if wanted < others or (one_by_one and asked_learner.couples_samples() and others):
        if wanted < others:
            neighbours = nearest(relations.detach(), wanted).sort(1).values.T.contiguous()
            # Python asks one model after the other, so it has to know their numbers.
            asked_models = neighbours.cpu() if one_by_one else neighbours
        else:  # they are known beforehand, and nobody waits for a GPU
            neighbours = all_others(len(batch), relations.device)
            asked_models = all_others(len(batch), torch.device("cpu"))
        weights = weights.gather(1, neighbours.T)
        if alignment is not None:
            tasks = torch.arange(len(batch), device=neighbours.device)
            alignment = alignment[neighbours, tasks]
    kind = mixture_kind(settings.mixture, batch.query.y, settings.normalize)

    def ask(part: slice) -> Tensor:
        some = part_of(fast, part) if neighbours is None else fast
        who = None if asked_models is None else asked_models[part]
        found = engine.cross(asked_learner, state, some, asked.features, asked.mask, who)
        if asked.later is None:
            return found
        return found[:, torch.arange(len(batch), device=found.device)[:, None], asked.later]

    def mixed(answers: Tensor, part: slice) -> Tensor:
        return mix(answers, weights[:, part], kind, None if alignment is None else alignment[part])

    models = len(batch) if neighbours is None else len(neighbours)
    size = settings.chunk_size
    if size == "auto":
        size = within_budget(ask, models, settings.memory_budget, features)
    found = mixed_in_chunks(ask, mixed, models, size, adds=kind == "values")
    return found, asked.chosen


def all_others(tasks: int, device: torch.device) -> Tensor:
    """Every model but the task's own, for each task: ``[tasks - 1 models, tasks]``.

    Example:
        >>> all_others(3, torch.device("cpu"))
        tensor([[1, 0, 0],
                [2, 2, 1]])
    """
    place = torch.arange(tasks - 1, device=device)[:, None]
    return place + (place >= torch.arange(tasks, device=device))


def prototypes_of(
    settings: Settings, learner: Learner, state: State, batch: TaskBatch
) -> Tensor | None:
    """What classes are aligned by, ``[tasks, classes, features]``; ``None`` where none are."""
    if settings.align == "none":
        return None
    assert isinstance(settings.encoder, HasPrototypes)  # checked with the options
    return settings.encoder.prototypes(learner, state, batch)


def aligned(settings: Settings, prototypes: Tensor, models: slice = slice(None)) -> Tensor:
    """Classes of (some) models found in tasks: ``[models, tasks, classes, classes]``."""
    match = align.sinkhorn if settings.align == "sinkhorn" else align.hungarian
    return match(prototypes, models=models)


def _confidence(alignment: Tensor) -> Tensor:
    """How sure an alignment ``[models, tasks, classes, classes]`` is: 1 is hard, 1 / classes a guess."""
    tasks = alignment.shape[0]
    other = ~torch.eye(tasks, dtype=torch.bool, device=alignment.device)
    best = alignment.detach().amax(-1).mean(-1)
    return torch.where(other, best, 0.0).sum() / (tasks * (tasks - 1))


def state_of_loss(loss_fn: LossFn) -> dict[str, Tensor]:
    """What a loss that is a module holds (class weights, or parameters of its own)."""
    if not isinstance(loss_fn, nn.Module):
        return {}
    return {PREFIX + "loss_fn." + name: t for name, t in tensors(loss_fn).items()}


def loss_in(loss_fn: LossFn, state: State) -> LossFn:
    """`loss_fn`, with what it holds taken from the state."""
    prefix = PREFIX + "loss_fn."
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if not own or not isinstance(loss_fn, nn.Module):
        return loss_fn
    return LossInState(loss_fn, own)
