"""`TRLearner`: one more term in the meta-loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trlearner.batch import TaskBatch, check_batch
from trlearner.check_call import check_call
from trlearner.checks import check_generator, check_loss_fn
from trlearner.collect import Collected
from trlearner.consistency import Mixture, Normalize, mixture_kind
from trlearner.encoders.extractor import Extractor, extractor_of, untrained
from trlearner.encoders.protocol import Encoder
from trlearner.engines import compiled
from trlearner.engines.blame import blaming, own_mistake
from trlearner.engines.choose import (
    ENGINES,
    SELF_CHOSEN,
    candidates,
    recomputes,
    settle,
    settled,
    without_graph,
)
from trlearner.engines.graph import NotCompilable
from trlearner.engines.tune import fastest
from trlearner.functional import (
    random_state,
    random_state_kept,
    set_random_state,
    tensors,
    views,
)
from trlearner.ignored import check_labelled
from trlearner.learners.protocol import Learner, check_learner
from trlearner.meta_step import PREFIX, described, meta_step, relation_term, state_of_loss
from trlearner.options import OPTIONS, Align, ChunkSize, check_options
from trlearner.output import Draws, Output, Term
from trlearner.questions import choose_queries, query_keys
from trlearner.regularized import Regularized
from trlearner.relation import TaskRelation, relation_matrix
from trlearner.sampler.sampler import TaskSampler
from trlearner.samples import Samples
from trlearner.seam import Engine
from trlearner.types import LossFn, State
from trlearner.warn import warn


@runtime_checkable
class Monitor(Protocol):
    """What is shown every meta-step that trains; see `RelationMonitor`."""

    def __call__(
        self,
        seen: Output | Term,
        regularizer: TRLearner,
        batch: TaskBatch,
        learner: Learner | None = None,
        own_loss: Callable[[], Tensor] | None = None,
    ) -> None:
        """Looks at a step before its backward pass.

        Args:
            seen: What the step found.
            regularizer: Whose step it was.
            batch: Its tasks.
            learner: Who adapted to them; ``None`` for a loop of the user's own.
            own_loss: Computes the learner's own loss of this step again, with a graph.
        """


class TRLearner(nn.Module):
    """Relation-aware regularization of a meta-learner (arXiv 2409.08474).

    ``L = mean_i loss(f_i(X_i), Y_i) + lam * L_TR``, where in L_TR every task's queries are predicted
    by the mixture of the other tasks' adapted models, weighted by a learned relation between tasks.

    Args:
        encoder: Makes a vector of each task, e.g. ``InputEncoder(model.features, dim=64)``.
        heads: Heads of the similarity layer.
        lam: The weight of the relation term. At 0 it is skipped, and the step is the learner's own to
            the last bit. May be set anew at any time.
        loss_fn: ``(predictions [samples, ...], targets [samples, ...]) -> scalar``, for one task.
        normalize: ``"sum"``, ``"softmax"`` or ``"quotient"``; see `relation_weights`.
        temperature: Of the softmax. May be set anew at any time.
        mixture: ``"values"``, ``"logits"``, or ``"auto"``: logits for integer targets.
        align: How class c of one task is found in another: ``"sinkhorn"``, ``"hungarian"``, or
            ``"none"`` where tasks share their classes (or have none).
        top_k: Ask only this many most related models for each task.
        queries: The share of each task's queries that the relation term uses, drawn at random.
        head: The name of the model's last layer: of the other models only this is asked, on what the
            task's own model makes of its queries, T passes in place of T². By default whole models are.
        chunk_size: At most so many models' cross predictions keep their activations at once; the
            others are computed again in the backward pass. ``"auto"`` asks one model at every step to see how
            many fit into `memory_budget`.
        memory_budget: In bytes, for ``chunk_size="auto"``; by default half of what is free.
        preset: ``"paper"`` takes the formulas literally: the plain quotient, values, no alignment.
        planned_steps: How many meta-steps are to come, if you know: engines ``"auto"`` and ``"tune"``
            compile where that pays, from about 5,000 on.
        sampler: Is told of every step that trains, and weighs the tasks' losses where that is its way. It
            is saved apart, with its own `state_dict`.
        generator: Draws the queries, and its seed the heads' noise; by default one seeded like torch,
            apart from the global stream.

    Attributes:
        monitor: Is shown every step that trains, e.g. a `RelationMonitor`; ``None`` costs nothing.

    Example:
        >>> import trlearner as tr
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> learner = tr.MAML(model, lr=0.1, steps=2)
        >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8), lam=0.1)
        >>> x = torch.rand(4, 10, 1)
        >>> out = reg(learner, tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x)))
        >>> out.loss.backward()
        >>> out.relations.shape, out.engine
        (torch.Size([4, 4]), 'batched')
    """

    outside_graph = (
        *("lam", "temperature"),  # which are inputs of the graph
        *("planned_steps", "monitor", "sampler", "generator", "_warned"),
    )

    def __init__(
        self,
        encoder: Encoder,
        heads: int = 4,
        lam: float = 0.1,
        loss_fn: LossFn = nn.functional.mse_loss,
        normalize: Normalize = "sum",
        temperature: float = 0.1,
        mixture: Mixture = "auto",
        align: Align = "none",
        top_k: int | None = None,
        queries: float = 1.0,
        head: str | None = None,
        chunk_size: ChunkSize = None,
        memory_budget: int | None = None,
        preset: Literal["paper"] | None = None,
        planned_steps: int | None = None,
        sampler: TaskSampler | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if preset == "paper":
            normalize, mixture, align = "quotient", "values", "none"
        elif preset is not None:
            raise ValueError(f"preset must be 'paper' or None, got {preset!r}.")
        if not isinstance(encoder, Encoder):
            raise TypeError(
                f"encoder must be a task encoder such as InputEncoder(model.features, dim=64), "
                f"got {type(encoder).__name__}."
            )
        check_loss_fn(loss_fn)
        check_generator(generator)
        self.encoder = encoder
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed())
        # Of its own again, so that what the heads draw does not shift what the queries draw.
        noise = torch.Generator().manual_seed(self.generator.initial_seed())
        self.relation = TaskRelation(encoder.dim, heads, generator=noise)
        self.lam = lam
        self.loss_fn = loss_fn
        self.normalize: Normalize = normalize
        self.temperature = temperature
        self.mixture: Mixture = mixture
        self.align: Align = align
        self.top_k = top_k
        self.queries = queries
        self.head = head
        self.chunk_size: ChunkSize = chunk_size
        self.memory_budget = memory_budget
        self.planned_steps = planned_steps
        self.sampler = sampler
        self.monitor: Monitor | None = None
        self._warned: set[str] = set()
        self.check_options()
        if sampler is not None:
            self._adopt(sampler)

    def forward(self, learner: Learner, batch: TaskBatch) -> Output:
        """One regularized meta-step, ready for ``out.loss.backward()``.

        Raises:
            ValueError: Naming what about the options, the batch or the model does not fit.
        """
        self.check_options()
        self.check_call(learner, batch)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                copy: Output = self(
                    learner, batch.replace(batch.support.clone(), batch.query.clone())
                )
                return copy
        with self._blaming(learner, batch):
            return self._step(learner, batch)

    def _blaming(self, learner: Learner, batch: TaskBatch) -> AbstractContextManager[None]:
        parts = {"batch.support": batch.support, "batch.query": batch.query}
        return blaming(learner, self.loss_fn, parts)

    def _step(self, learner: Learner, batch: TaskBatch) -> Output:
        engine = learner.check(
            batch.support, self.loss_fn, batch.query, planned_steps=self.planned_steps
        )
        state = learner.state() | state_of_loss(self.loss_fn)
        related = self.lam != 0 and len(batch) > 1
        if related:
            state |= self.prepared(learner, batch)
            self.warn_of(untrained(state))
        chosen = self._draw_queries(batch.query) if related else None
        draws = Draws(
            self.lam, self.temperature, related, chosen, self._task_weights(learner, batch)
        )
        if learner.engine == "tune" and not settled(learner):
            engine = self._tune(learner, state, batch, draws)
        monitor = self._watching()
        random = None if monitor is None else random_state()
        trains = self.training and torch.is_grad_enabled()
        followed = views(learner.state()) if trains and self.sampler is not None else {}
        out = self._run_somehow(engine, learner, state | followed, batch, draws)
        if not trains:
            return out
        if self.sampler is not None:
            self.sampler.watch(learner, batch, followed)
        if monitor is None or random is None:
            return out

        def own_loss() -> Tensor:
            with random_state_kept(batch.query.x):
                set_random_state(random)
                without = replace(draws, lam=0.0)
                return self._run(ENGINES[out.engine], learner, state, batch, without).loss

        monitor(out, self, batch, learner, own_loss)
        return out

    def relate(self, learner: Learner, batch: TaskBatch) -> Tensor:
        """M ``[tasks, models]`` of some tasks, for looking: nothing is trained, no graph is kept.

        Example:
            >>> import trlearner as tr
            >>> learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=2)
            >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8))
            >>> x = torch.rand(4, 10, 1)
            >>> reg.relate(learner, tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x))).shape
            torch.Size([4, 4])
        """
        check_learner(learner)
        check_batch(batch)
        with torch.no_grad(), random_state_kept(batch.query.x), self._blaming(learner, batch):
            support = batch.support
            # For a look now and then, a graph does not pay.
            engine = without_graph(learner.check(support, self.loss_fn))
            state = learner.state() | self.prepared(learner, batch)
            features = engine.embed(learner, state, support.x, support.mask)
            fast = engine.adapt(learner, state, features, support, self.loss_fn, learner.steps)
            embeddings = described(self, engine, learner, state, batch, fast)
            return relation_matrix(embeddings, self.relation.weight)

    def _watching(self) -> Monitor | None:
        """The monitor, if it is to see this step: one that trains."""
        return self.monitor if self.training and torch.is_grad_enabled() else None

    def _run_somehow(
        self, engine: Engine, learner: Learner, state: State, batch: TaskBatch, draws: Draws
    ) -> Output:
        """On another engine, if a graph was not asked for and cannot be made."""
        try:
            return self._run(engine, learner, state, batch, draws)
        except NotCompilable as error:
            parts = {"batch.support": batch.support, "batch.query": batch.query}
            if learner.engine not in SELF_CHOSEN or own_mistake(learner, self.loss_fn, parts):
                raise
            settle(learner, "batched")
            warn(f"engine={learner.engine!r} goes on with 'batched', for {error}")
            return self._run(ENGINES["batched"], learner, state, batch, draws)

    def prepared(self, learner: Learner, batch: TaskBatch) -> dict[str, Tensor]:
        """The state beside the learner's part, once the encoder is fit for the batch."""
        self.encoder.prepare(learner, batch)
        for part in self.encoder.modules():
            if isinstance(part, Extractor):
                part.check(batch.support)
        found = {PREFIX + name: tensor for name, tensor in tensors(self).items()}
        if (extractor := extractor_of(self.encoder)) is not None:
            found |= extractor.foreign(learner)
        return found

    def collect(
        self,
        reduction: Literal["mean", "sum"] = "mean",
        together: bool = False,
        ways: int | None = None,
    ) -> Collected:
        """Collects the tasks of one meta-step of your own loop: ``add`` them, then add ``penalty()``.

        Args:
            reduction: ``"sum"`` in a loop that does not divide by the number of tasks.
            together: Ask each model once for all queries; not with BatchNorm in training mode.
            ways: The number of classes, which alignment needs.

        Example:
            >>> import trlearner as tr
            >>> from torch.nn.functional import mse_loss
            >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8))
            >>> w, tasks, loss = torch.ones(1, requires_grad=True), reg.collect(), 0
            >>> for slope in (1.0, 2.0, 3.0):
            ...     x = torch.rand(5, 1)
            ...     (g,) = torch.autograd.grad(mse_loss(w * x, slope * x), w, create_graph=True)
            ...     fmodel = lambda x, fast=w - 0.1 * g: fast * x
            ...     tasks.add(fmodel, support=(x, slope * x), query=(x, slope * x))
            ...     loss = loss + mse_loss(fmodel(x), slope * x) / 3
            >>> (loss + tasks.penalty()).backward()
            >>> tasks.term.relations.shape
            torch.Size([3, 3])
        """
        return Collected(self, reduction, together, ways)

    def regularize(
        self,
        adapt: Callable[[tuple[Tensor, Tensor]], Callable[[Tensor], Any]],
    ) -> Regularized:
        """Decorates an adapt function of your own: what comes back takes whole batches.

        Args:
            adapt: From a task's support pair ``(x [samples, ...], y [samples, ...])`` to its adapted
                model, a callable on inputs. It stays at ``.adapt`` of what is returned.

        Example:
            >>> import trlearner as tr
            >>> w, x = torch.ones(1, requires_grad=True), torch.rand(4, 5, 1)
            >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8))
            >>> @reg.regularize
            ... def adapt(support):
            ...     x, y = support
            ...     (g,) = torch.autograd.grad((w * x - y).square().mean(), w, create_graph=True)
            ...     return lambda x, fast=w - 0.1 * g: fast * x
            >>> out = adapt(tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x)))
            >>> out.loss.backward()
            >>> out.engine, adapt.adapt((x[0], x[0]))(x[0]).shape
            ('collected', torch.Size([5, 1]))
        """
        return Regularized(self, adapt)

    def term_of(self, learner: Learner, engine: Engine, batch: TaskBatch) -> Term:
        """The relation term of models that were adapted elsewhere; `collect` calls it."""
        if self.head is not None:
            raise ValueError(
                f"head={self.head!r} asks a part of each model, but models of your own loop are asked as a "
                "whole. Leave head out, or call reg(learner, batch) with a learner such as tr.MAML."
            )
        check_labelled(self.loss_fn, batch.query.y, batch.query.mask)
        state = state_of_loss(self.loss_fn) | self.prepared(learner, batch)
        mixture_kind(self.mixture, batch.query.y, self.normalize)
        draws = Draws(self.lam, self.temperature, True, self._draw_queries(batch.query))
        fast = {"model": torch.arange(len(batch))}
        term = relation_term(self, engine, learner, state, batch, fast, batch.query.x, draws)
        if (monitor := self._watching()) is not None:
            monitor(term, self, batch)
        return term

    def _run(
        self, engine: Engine, learner: Learner, state: State, batch: TaskBatch, draws: Draws
    ) -> Output:
        step = partial(meta_step, self)
        if engine.name not in compiled.NAMES:
            return step(engine, learner, state, batch, draws)
        if draws.related and self.chunk_size == "auto":
            raise NotCompilable(
                "chunk_size='auto' looks at every step's memory, which a graph cannot. Pass a number, or use "
                "engine='batched'."
            )
        reads = self if draws.related else self.loss_fn
        return compiled.run(step, self, engine, learner, state, batch, draws, reads)

    def _task_weights(self, learner: Learner, batch: TaskBatch) -> Tensor | None:
        """Of the tasks' own losses in a step that trains; ``None`` for their mean."""
        trains = self.training and torch.is_grad_enabled()
        if self.sampler is None or not trains or not self.sampler.weighs:
            return None
        return self.sampler.weigh(learner, batch)

    def _tune(self, learner: Learner, state: State, batch: TaskBatch, draws: Draws) -> Engine:
        """Times the engines on this batch and settles for the fastest."""
        trained = [t for t in state.values() if t.requires_grad]

        def once(name: str) -> None:
            with random_state_kept(batch.query.x):
                loss = self._run(ENGINES[name], learner, state, batch, draws).loss
                if loss.requires_grad:
                    torch.autograd.grad(loss, trained, allow_unused=True)
                if loss.is_cuda:
                    torch.cuda.synchronize(loss.device)

        masked = batch.support.mask is not None or batch.query.mask is not None
        planned = None if recomputes(learner) else self.planned_steps  # without, no graph is tried
        settle(learner, fastest(once, candidates(learner, masked), planned))
        return learner.check(batch.support, self.loss_fn, batch.query)

    def _draw_queries(self, query: Samples) -> Tensor | None:
        """Which queries of each task to use ``[tasks, chosen]``, real ones first; ``None`` for all."""
        tasks, total = query.x.shape[:2]
        keys = query_keys(self.queries, tasks, total, self.generator)
        return None if keys is None else choose_queries(self.queries, keys, query)

    def check_options(self) -> None:
        """Refuse options that make no sense; they may have been set anew.

        Raises:
            ValueError: Naming the option, what it was and what it may be.
        """
        check_options(**{name: getattr(self, name) for name in OPTIONS}, encoder=self.encoder)

    def check_call(self, learner: Learner, batch: TaskBatch, tasks: int | None = None) -> None:
        """Refuse what is no learner or no batch, or does not go with the options.

        Args:
            learner: What was given for it.
            batch: What was given for it.
            tasks: How many there are in all, where the batch is one rank's share.

        Raises:
            TypeError: Naming what is of a wrong kind.
            ValueError: Naming what does not fit.
        """
        self.warn_of(check_call(self, learner, batch, self.lam != 0, tasks))

    def _adopt(self, sampler: TaskSampler) -> None:
        """A sampler that was told no loss judges tasks by this one."""
        if not isinstance(sampler, TaskSampler):
            raise TypeError(
                f"sampler must be a task sampler such as tr.AdaptiveTaskSampler(), got "
                f"{type(sampler).__name__}."
            )
        if sampler.loss_fn is None:
            sampler.loss_fn = self.loss_fn

    def warn_of(self, concerns: list[str]) -> None:
        """Warns of each, once."""
        for concern in concerns:
            self._warn(concern)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not monitored: an open event file cannot be copied, and one writer is enough."""
        return {**self.__dict__, "monitor": None}

    def get_extra_state(self) -> Tensor:
        """Where the draws of queries stand, so that a resumed run goes on with the same."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Puts the draws of queries back to where they stood."""
        self.generator.set_state(state.cpu())
