"""`TRLearner`: one more term in the meta-loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trlearner.base.checks import check_generator, check_instance, check_loss_fn, check_number
from trlearner.base.functional import (
    random_state,
    random_state_kept,
    set_random_state,
    tensors,
)
from trlearner.base.types import LossFn
from trlearner.base.warn import warn
from trlearner.encoders.protocol import Encoder
from trlearner.engines.adapted import Embedded, Engine, Models, adapt
from trlearner.engines.blame import blamed, blaming
from trlearner.engines.choose import (
    ENGINES,
    candidates,
    settle,
    settled,
    without_graph,
)
from trlearner.engines.tune import fastest
from trlearner.learners.extractor import MODULE, Extractor
from trlearner.learners.protocol import Learner, check_learner
from trlearner.regularizer.check_call import check_align, check_call
from trlearner.regularizer.collect import Collected
from trlearner.regularizer.graph_step import graph_step
from trlearner.regularizer.meta_step import (
    Parts,
    StepState,
    described,
    meta_step,
    relation_term,
    state_of_loss,
)
from trlearner.regularizer.options import Align, ChunkSize, Options
from trlearner.regularizer.output import Draws, Output, Term
from trlearner.regularizer.regularized import Regularized
from trlearner.relations.consistency import Mixture, Normalize, check_temperature, mixture_kind
from trlearner.relations.similarity import TaskRelation, relation_matrix
from trlearner.samplers.sampler import TaskSampler
from trlearner.tasks.batch import TaskBatch, check_batch
from trlearner.tasks.ignored import check_labelled
from trlearner.tasks.nested import raw, unpacked
from trlearner.tasks.queries import choose_queries, query_keys
from trlearner.tasks.samples import Samples


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
            the last bit. May be set anew at any time: ``reg.lam = 0.2``.
        loss_fn: ``(predictions [samples, ...], targets [samples, ...]) -> scalar``, for one task.
        normalize: ``"sum"``, ``"softmax"`` or ``"quotient"``, or a function; see `relation_weights`.
        temperature: Of the softmax. May be set anew at any time.
        mixture: ``"values"``, ``"logits"``, or ``"auto"``: logits for integer targets.
        align: How class c of one task is found in another: ``"sinkhorn"``, ``"hungarian"``, or
            ``"none"`` where tasks share their classes (or have none). Or a function
            ``(prototypes [tasks, classes, features]) -> [models, tasks, classes, classes]``.
        top_k: Ask only this many most related models for each task.
        queries: The share of each task's queries that the relation term uses, drawn at random.
        head: The name of the model's last layer: of the other models only this is asked, on what the
            task's own model makes of its queries, T passes in place of T². By default whole models are.
        chunk_size: At most so many models' cross predictions keep their activations at once; the
            others are computed again in the backward pass. ``"auto"`` asks one model at every step to see how
            many fit into `memory_budget`.
        memory_budget: In bytes, for ``chunk_size="auto"``; by default half of what is free.
        preset: ``"paper"`` takes the formulas literally: the plain quotient, values, no alignment.
        sampler: Updated after every step that trains. Without a `batch_size` it also weights the task losses.
            It is saved apart, with its own `state_dict`.
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

    # λ and the temperature are inputs of a graph. The options are a part of its key: see `graph_step`.
    outside_graph = (
        *("lam", "temperature", "options"),
        *("monitor", "sampler", "generator", "_warned", "_passed"),
    )
    lam: float
    temperature: float | Tensor
    options: Options

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
        self.loss_fn = loss_fn
        self.sampler = sampler
        self.monitor: Monitor | None = None
        self._warned: set[str] = set()
        self._passed: Any = None  # the last call that was checked
        self.lam = lam
        self.temperature = temperature
        self.options = Options(
            normalize, mixture, align, top_k, queries, head, chunk_size, memory_budget
        )
        if sampler is not None:
            self._adopt(sampler)

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks what may be set anew at any time: `lam`, `temperature` and `options`."""
        if name == "lam":
            check_number("lam", value, least=0)
        elif name == "temperature":
            check_temperature(value)
        elif name == "options":
            check_instance(
                "options", value, Options, "dataclasses.replace(reg.options, ...) makes one."
            )
            check_align(value.align, self.encoder)
        super().__setattr__(name, value)

    def forward(self, learner: Learner, batch: TaskBatch) -> Output:
        """One regularized meta-step, ready for ``out.loss.backward()``.

        Raises:
            ValueError: Naming what about the options, the batch or the model does not fit.
        """
        self.check_call(learner, batch)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                copy: Output = self(
                    learner, batch.replace(batch.support.clone(), batch.query.clone())
                )
                return copy
        try:
            return self._step(learner, batch)
        except Exception as error:
            mistake = blamed(error, learner, self.loss_fn, _named(batch))
            if mistake is None:
                raise
            raise mistake from error

    @property
    def parts(self) -> Parts:
        """What a pure step takes of this module, apart from its state."""
        return Parts(self.encoder, self.loss_fn, self.options, self.lam, self.temperature)

    def _step(self, learner: Learner, batch: TaskBatch) -> Output:
        support, query, loss_fn = batch.support, batch.query, self.loss_fn
        engine = learner.engine_for(support, loss_fn, query)
        related = self.lam != 0 and support.x.shape[0] > 1
        state = self.state(learner, batch, related)
        chosen = self._draw_queries(query) if related else None
        draws = Draws(related, chosen, self._task_weights(learner, batch))
        if learner.engine == "tune" and not settled(learner):
            engine = self._tune(learner, state, batch, draws)
        monitor = self._watching()
        random = None if monitor is None else random_state()
        trains = self.training and torch.is_grad_enabled()
        out = self._run(engine, learner, state, batch, draws, self.parts)
        if learner.layout is not None:
            structured = unpacked(out.predictions, learner.layout, 2)
            out = replace(out, predictions=raw(structured))
        if not trains:
            return out
        if self.sampler is not None:
            self.sampler.update(learner, batch)
        if monitor is None or random is None:
            return out

        def own_loss() -> Tensor:
            with random_state_kept(query.x):
                set_random_state(random)
                parts = self.parts._replace(lam=0.0)
                return self._run(ENGINES[out.engine], learner, state, batch, draws, parts).loss

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
        support = batch.support
        with torch.no_grad(), random_state_kept(batch.query.x):
            with blaming(learner, self.loss_fn, _named(batch)):
                # For a look now and then, a graph does not pay.
                engine = without_graph(learner.engine_for(support, self.loss_fn))
                state = self.state(learner, batch)
                models = adapt(engine, learner, state.learner, support, self.loss_fn, learner.steps)
                embeddings = described(self.encoder, models, state.regularizer, batch)
            return relation_matrix(embeddings, self.relation.weight)

    def _watching(self) -> Monitor | None:
        """The monitor, if it is to see this step: one that trains."""
        return self.monitor if self.training and torch.is_grad_enabled() else None

    def _run(
        self,
        engine: Engine,
        learner: Learner,
        state: StepState,
        batch: TaskBatch,
        draws: Draws,
        parts: Parts,
    ) -> Output:
        if engine.graphs:
            return graph_step(parts, self, engine, learner, state, batch, draws)
        return meta_step(parts, engine, learner, state, batch, draws)

    def state(self, learner: Learner, batch: TaskBatch, related: bool = True) -> StepState:
        """Every tensor that a meta-step reads, once the encoder is fit for the batch.

        Args:
            learner: Whose models are related.
            batch: The tasks.
            related: Whether there is to be a relation term.
        """
        own = self.prepared(learner, batch) if related else {}
        if isinstance(self.loss_fn, nn.Module):
            own = own | state_of_loss(self.loss_fn)
        return StepState(learner.state(), own)

    def prepared(self, learner: Learner | None, batch: TaskBatch) -> dict[str, Tensor]:
        """This module's parameters and buffers by name, once the encoder is fit for the batch."""
        self.encoder.prepare(learner, batch)
        found = tensors(self)
        for name, part in self.named_modules():
            if isinstance(part, Extractor):
                foreign = part.prepare(learner, batch.support)
                found |= {f"{name}.{MODULE}{n}": tensor for n, tensor in foreign.items()}
        return found

    def collect(
        self,
        reduction: Literal["mean", "sum"] = "mean",
        together: bool = False,
        ways: int | None = None,
        start: Any = None,
    ) -> Collected:
        """Collects the tasks of one meta-step of your own loop: ``add`` them, then add ``penalty()``.

        Args:
            reduction: ``"sum"`` in a loop that does not divide by the number of tasks.
            together: Ask each model once for all queries; not with BatchNorm in training mode.
            ways: The number of classes, which alignment needs.
            start: Where every task's adaptation starts, e.g. ``list(net.parameters())``: for `UpdateEncoder`,
                which also needs ``add(..., fast=...)``.

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
        return Collected(self, reduction, together, ways, start)

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

    def term_of(self, models: Models, batch: TaskBatch) -> Term:
        """The relation term of models that were adapted elsewhere; `collect` calls it."""
        if self.options.head is not None:
            raise ValueError(
                f"head={self.options.head!r} asks a part of each model, but models of your own loop are "
                "asked as a whole. Leave head out, or call reg(learner, batch) with a learner such as "
                "tr.MAML."
            )
        query = batch.query
        if query.labelled:
            check_labelled(self.loss_fn, query.y, query.mask)
        state = self.prepared(None, batch)
        if isinstance(self.loss_fn, nn.Module):
            state |= state_of_loss(self.loss_fn)
        mixture_kind(self.options.mixture, query.labelled, self.options.normalize)
        draws = Draws(True, self._draw_queries(query))
        asked = Embedded(query.x, query.mask)
        term = relation_term(self.parts, models, state, batch, asked, draws)
        if (monitor := self._watching()) is not None:
            monitor(term, self, batch)
        return term

    def _task_weights(self, learner: Learner, batch: TaskBatch) -> Tensor | None:
        """Of the tasks' own losses in a step that trains; ``None`` for their mean."""
        trains = self.training and torch.is_grad_enabled()
        if self.sampler is None or not trains or not self.sampler.weighs:
            return None
        return self.sampler.weigh(learner, batch)

    def _tune(self, learner: Learner, state: StepState, batch: TaskBatch, draws: Draws) -> Engine:
        """Times the engines on this batch and settles for the fastest."""
        tensors = (*state.learner.values(), *state.regularizer.values())
        trained = [t for t in tensors if t.requires_grad]

        def once(name: str) -> None:
            with random_state_kept(batch.query.x):
                loss = self._run(ENGINES[name], learner, state, batch, draws, self.parts).loss
                if loss.requires_grad:
                    torch.autograd.grad(loss, trained, allow_unused=True)
                if loss.is_cuda:
                    torch.cuda.synchronize(loss.device)

        masked = batch.support.mask is not None or batch.query.mask is not None
        settle(learner, fastest(once, candidates(learner, masked)))
        return learner.engine_for(batch.support, self.loss_fn, batch.query)

    def _draw_queries(self, query: Samples) -> Tensor | None:
        """Which queries of each task to use ``[tasks, chosen]``, real ones first; ``None`` for all."""
        share = self.options.queries
        if share == 1:
            return None
        tasks, total = query.x.shape[:2]
        keys = query_keys(share, tasks, total, self.generator)
        return None if keys is None else choose_queries(share, keys, query)

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
        parts = self.parts
        call = None
        if isinstance(learner, Learner) and isinstance(batch, TaskBatch):
            query = batch.query
            shapes = batch.ways, query.y.dtype, query.x.shape[0], tasks
            kind = learner.engine, torch.is_grad_enabled(), *shapes
            call = weakref.ref(learner), parts, kind
            if call == self._passed:
                return
        for concern in check_call(parts, learner, batch, tasks):
            self._warn(concern)
        self._passed = call

    def _adopt(self, sampler: TaskSampler) -> None:
        """A sampler that was told no loss judges tasks by this one."""
        if not isinstance(sampler, TaskSampler):
            raise TypeError(
                f"sampler must be a task sampler such as tr.AdaptiveTaskSampler(), got "
                f"{type(sampler).__name__}."
            )
        if sampler.loss_fn is None:
            sampler.loss_fn = self.loss_fn

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not monitored: an open event file cannot be copied, and one writer is enough."""
        return {**self.__dict__, "monitor": None, "_passed": None}

    def get_extra_state(self) -> Tensor:
        """Where the draws of queries stand, so that a resumed run goes on with the same."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Puts the draws of queries back to where they stood."""
        self.generator.set_state(state.cpu())


def _named(batch: TaskBatch) -> dict[str, Samples]:
    """A batch's parts, by what error texts call them."""
    return {"batch.support": batch.support, "batch.query": batch.query}
