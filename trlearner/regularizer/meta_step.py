"""The regularized meta-step as a pure function of state, batch and draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from trlearner.base.checks import check_tensor
from trlearner.base.functional import below, take, tensors
from trlearner.base.types import LossFn, State
from trlearner.encoders.protocol import Encoder, HasPrototypes
from trlearner.engines.adapted import Adapted, Embedded, Engine, Models, adapt
from trlearner.engines.budget import within_budget
from trlearner.engines.chunks import mixed_in_chunks
from trlearner.engines.head import Body, HasModel, Head
from trlearner.learners.protocol import Learner
from trlearner.regularizer.options import Options
from trlearner.regularizer.output import Draws, Output, Term
from trlearner.relations import align
from trlearner.relations.consistency import mix, mixture_kind, neighbours, weights_of
from trlearner.relations.similarity import head_relations
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.samples import Samples
from trlearner.tasks.targets import LossInState

M = TypeVar("M", bound=Models)
WHOLE = slice(None)
LOSS = "loss_fn."
"""Where the regularizer's state keeps what a loss holds."""
ENCODER = "encoder."
"""Where the regularizer's state keeps what is the encoder's."""


class Parts(NamedTuple):
    """What a regularizer is made of, apart from its state."""

    encoder: Encoder
    loss_fn: LossFn
    options: Options
    lam: float | Tensor
    temperature: float | Tensor


@dataclass(frozen=True, eq=False)
class StepState:
    """Every parameter and buffer of a meta-step, by the names that their owners have for them."""

    learner: State
    regularizer: State


def meta_step(
    parts: Parts, engine: Engine, learner: Learner, state: StepState, batch: TaskBatch, draws: Draws
) -> Output:
    """``L = mean_i loss(f_i(X_i), Y_i) + lam * L_TR``.

    Args:
        parts: Of the regularizer.
        engine: Runs the tasks.
        learner: Whose functions are run; its parameters are read from `state` only.
        state: Of learner and regularizer.
        batch: The tasks.
        draws: The random choices.
    """
    models, asked, predictions, losses = own_part(
        parts, engine, learner, state, batch, draws.related
    )
    own = losses.mean() if draws.task_weights is None else (draws.task_weights * losses).sum()
    seen = predictions.detach()
    if not draws.related:
        return Output(own, own.detach(), torch.zeros_like(own).detach(), seen, engine.name)
    term = relation_term(parts, models, state.regularizer, batch, asked, draws)
    loss, related = own + parts.lam * term.loss, term.loss.detach()
    return Output(loss, own.detach(), related, seen, engine.name, **looks(term))


class Own(NamedTuple):
    """What adaptation made of each task, and how its model does on the task's own queries."""

    models: Adapted
    asked: Embedded  # the queries, as `asking` models take them
    predictions: Tensor  # [tasks, queries, ...]
    losses: Tensor  # [tasks]


def own_part(
    parts: Parts,
    engine: Engine,
    learner: Learner,
    state: StepState,
    batch: TaskBatch,
    related: bool,
) -> Own:
    """The learner's own part of a meta-step; arguments as in `meta_step`, and in its draws."""
    loss_fn = loss_in(parts.loss_fn, state.regularizer)
    models = adapt(engine, learner, state.learner, batch.support, loss_fn, learner.steps)
    asked, head = models.embed(batch.query), parts.options.head
    if related and head is not None:
        # The body once, for both parts of the loss.
        body = replace(models, learner=Body(learner, head))
        asked = Embedded(body.predict(asked), asked.mask)
    predictions = (asking(models, head) if related else models).predict(asked)
    return Own(models, asked, predictions, models.losses(loss_fn, predictions, batch.query))


def asking(models: M, head: str | None) -> M:
    """The models that the relation term asks: these, or only their heads."""
    if head is None:
        return models
    assert isinstance(models, Adapted)  # others are refused
    assert isinstance(models.learner, HasModel)
    return replace(models, learner=Head(models.learner, head))


def relation_term(
    parts: Parts, models: Models, state: State, batch: TaskBatch, asked: Embedded, draws: Draws
) -> Term:
    """L_TR of adapted models, and what it is made of.

    Args:
        parts: Of the regularizer.
        models: The adapted models.
        state: The regularizer's parameters and buffers.
        batch: The tasks.
        asked: The queries, as `asking` models take them.
        draws: As in `meta_step`.
    """
    options, loss_fn = parts.options, loss_in(parts.loss_fn, state)
    embeddings = described(parts.encoder, models, state, batch)
    relations = head_relations(embeddings, state["relation.weight"]).mean(0)
    few = options.top_k is not None
    chosen = neighbours(relations.detach(), options.top_k) if few else None
    weights = weights_of(relations, options.normalize, parts.temperature, chosen)
    prototypes = prototypes_of(parts, models, state, batch)
    alignment = None if prototypes is None else aligned(options, prototypes)
    askers = asking(models, options.head)
    query, asked, later = questions(askers, batch.query, asked, draws.queries)
    pairs = Pairs(askers, asked, later, _named(askers, len(relations), chosen))
    kind = mixture_kind(options.mixture, query.labelled, options.normalize)
    mixed = _mixed(options, pairs, weights, alignment, kind)
    confidence = None if alignment is None else _confidence(alignment)
    related = models.losses(loss_fn, mixed, query).mean()
    return Term(related, relations, weights, embeddings, confidence)


def described(encoder: Encoder, models: Models, state: State, batch: TaskBatch) -> Tensor:
    """What the encoder makes of each task ``[tasks, dim]``; arguments as in `relation_term`."""
    embeddings = encoder.encode(of_encoder(state), batch, models)
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
        check_tensor("embeddings", embeddings, "tasks, dim")
    return embeddings


def looks(term: Term) -> dict[str, Tensor | None]:
    """All of a term but its loss, detached, by the names that `Output` has for it."""
    found = {n: getattr(term, n) for n in term._fields if n != "loss"}
    return {n: None if t is None else t.detach() for n, t in found.items()}


# ---- what the models are asked ---------------------------------------------------------------------


class Pairs(NamedTuple):
    """Which models are asked about which tasks."""

    models: Models
    asked: Embedded
    later: Tensor | None  # [tasks, chosen]: which answers count, where more are asked for
    named: Tensor | None  # [models, tasks]: the models to ask for each task; None for all

    @property
    def rows(self) -> int:
        """How many answers each task gets."""
        return len(self.models) if self.named is None else len(self.named)

    def answers(self, part: slice) -> Tensor:
        """Some rows of ``[models, tasks, queries, ...]``."""
        if self.named is None:
            models = self.models if part == WHOLE else self.models[part]
            found = models.cross(self.asked)
        else:
            found = self.models.cross(self.asked, models=self.named[part])
        if self.later is None:
            return found
        tasks = torch.arange(found.shape[1], device=found.device)
        return found[:, tasks[:, None], self.later]


def questions(
    models: Models, query: Samples, asked: Embedded, choice: Tensor | None
) -> tuple[Samples, Embedded, Tensor | None]:
    """The queries that count, what models are asked, and which of the answers count, if not all.

    Where layers couple samples, models must see all queries of a task.

    Args:
        models: Are asked.
        query: All queries.
        asked: As the models take them.
        choice: The queries that count ``[tasks, chosen]``; ``None`` for all.
    """
    if choice is None:
        return query, asked, None
    chosen = query.choose(choice)
    if models.couples_samples():
        return chosen, asked, choice
    return chosen, Embedded(take(asked.features, choice), chosen.mask), None


def _named(models: Models, tasks: int, chosen: Tensor | None) -> Tensor | None:
    """The models to ask for each task ``[models, tasks]``; ``None`` to ask all about all."""
    if chosen is not None:
        return chosen.sort(1).values.T.contiguous()
    # An engine that asks model by model and task by task skips a task's own model, which has no weight.
    if models.runner.together or not models.couples_samples() or tasks == 1:
        return None
    return all_others(tasks, torch.device("cpu"))  # they are known, and nobody waits for a GPU


def _mixed(
    options: Options,
    pairs: Pairs,
    weights: Tensor,
    alignment: Tensor | None,
    kind: Literal["values", "logits"],
) -> Tensor:
    """Each task's queries as its neighbours' mixture predicts them ``[tasks, queries, ...]``."""
    if pairs.named is not None:
        named = pairs.named.to(weights.device, non_blocking=True)
        weights = weights.gather(1, named.T)
        if alignment is not None:
            alignment = alignment[named, torch.arange(named.shape[1], device=named.device)]
        if not pairs.models.runner.together:
            # Python asks one model after the other, so it has to know their numbers.
            pairs = pairs._replace(named=pairs.named.cpu())

    def mixed(answers: Tensor, part: slice) -> Tensor:
        return mix(answers, weights[:, part], kind, None if alignment is None else alignment[part])

    size = options.chunk_size
    if size == "auto":
        like = pairs.asked.features
        size = within_budget(pairs.answers, pairs.rows, options.memory_budget, like)
    if size is None:
        return mixed(pairs.answers(WHOLE), WHOLE)
    return mixed_in_chunks(pairs.answers, mixed, pairs.rows, size, adds=kind == "values")


def all_others(tasks: int, device: torch.device) -> Tensor:
    """Every model but the task's own, for each task: ``[tasks - 1 models, tasks]``.

    Example:
        >>> all_others(3, torch.device("cpu"))
        tensor([[1, 0, 0],
                [2, 2, 1]])
    """
    place = torch.arange(tasks - 1, device=device)[:, None]
    return place + (place >= torch.arange(tasks, device=device))


# ---- classes that are numbered by each task ---------------------------------------------------------


def prototypes_of(parts: Parts, models: Models, state: State, batch: TaskBatch) -> Tensor | None:
    """What classes are aligned by, ``[tasks, classes, features]``; ``None`` where none are."""
    if parts.options.align == "none":
        return None
    assert isinstance(parts.encoder, HasPrototypes)  # checked with the options
    return parts.encoder.prototypes(of_encoder(state), batch, models)


def aligned(options: Options, prototypes: Tensor, models: slice = slice(None)) -> Tensor:
    """Classes of (some) models found in tasks: ``[models, tasks, classes, classes]``."""
    if callable(options.align):
        return options.align(prototypes)[models]
    match = align.sinkhorn if options.align == "sinkhorn" else align.hungarian
    return match(prototypes, models=models)


def _confidence(alignment: Tensor) -> Tensor:
    """How sure an alignment ``[models, tasks, classes, classes]`` is: 1 is hard, 1 / classes a guess."""
    tasks = alignment.shape[0]
    other = ~torch.eye(tasks, dtype=torch.bool, device=alignment.device)
    best = alignment.detach().amax(-1).mean(-1)
    return torch.where(other, best, 0.0).sum() / (tasks * (tasks - 1))


# ---- the state ---------------------------------------------------------------------------------------


def of_encoder(state: State) -> State:
    """The regularizer's state, as its encoder takes it: the encoder's tensors also by its own names."""
    return {**state, **below(ENCODER, state)}


def state_of_loss(loss_fn: LossFn) -> dict[str, Tensor]:
    """What a loss that is a module holds (class weights, or parameters of its own)."""
    if not isinstance(loss_fn, nn.Module):
        return {}
    return {LOSS + name: t for name, t in tensors(loss_fn).items()}


def loss_in(loss_fn: LossFn, state: State) -> LossFn:
    """`loss_fn`, with what it holds taken from the regularizer's state."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    own = below(LOSS, state)
    return LossInState(loss_fn, own) if own else loss_fn
