"""`TaskMemory`: adapted models of earlier tasks have a say in predictions for new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from trlearner.batch import TaskBatch
from trlearner.checks import check_loss_fn, check_number, check_whole
from trlearner.consistency import Mixture, mix, mixture_kind
from trlearner.engines.adapted import Adapted
from trlearner.engines.choose import without_graph
from trlearner.learners.protocol import Learner, check_learner
from trlearner.memory_state import check_state
from trlearner.rows import part_of
from trlearner.samples import Samples, samples_of
from trlearner.types import Fast, LossFn
from trlearner.warn import warn

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""What `TaskMemory.tune` tries, in units of the learner's own loss."""

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Likewise, beside 0."""


EXPLODED = 1e30
"""What a loss that is no number counts as: worse than any other, no better than its like."""


class TaskMemory:
    """Predicts with a mixture of a task's own adapted model and those of earlier tasks.

    ``P_i = (1 - share) f_i(X_i) + share * sum_j w_ij f_j(X_i)``, where j runs over remembered tasks
    and ``w_ij = softmax_j(-loss(f_j, support of i) / temperature)``: whoever explains the few labels
    of a new task has a say in its answers. Class logits are mixed as probabilities.

    It is for a learner that has been trained: what is remembered is worth nothing to other weights, so
    their change is an error. Give it the training tasks with all of their samples, then validation tasks,
    on which `tune` finds share and temperature; where the others do not help, the share is 0 and
    the answers are the learner's own. Tasks must share what outputs mean: class c of one task must be
    class c of another.

    Args:
        learner: Adapts, and has adapted to what is remembered.
        loss_fn: ``(predictions [samples, ...], targets [samples, ...]) -> scalar``, for one task.
        share: Of the remembered models in the answer, from 0 to 1; `tune` sets it.
        temperature: Of their weights; `tune` sets it.
        mixture: What is mixed, as of `TRLearner`: predictions, or logits.
        top_k: So many models that explain a task best have a say.
        chunk_size: So many models are asked at once.

    Example:
        >>> import trlearner as tr
        >>> def lines(tasks):
        ...     x, slope = torch.rand(tasks, 15, 1), torch.rand(tasks, 1, 1)
        ...     return tr.TaskBatch((x[:, :5], slope * x[:, :5]), (x[:, 5:], slope * x[:, 5:]))
        >>> learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=2)  # and train it
        >>> memory = tr.TaskMemory(learner)
        >>> memory.remember(lines(50), steps=20)
        >>> len(memory)
        50
        >>> tuned = memory.tune(lines(20))
        >>> tuned.loss <= tuned.alone
        True
        >>> new = lines(4)
        >>> memory.adapt(new.support)(new.query.x).shape
        torch.Size([4, 10, 1])
    """

    def __init__(
        self,
        learner: Learner,
        loss_fn: LossFn = nn.functional.mse_loss,
        *,
        share: float = 0.5,
        temperature: float = 0.1,
        mixture: Mixture = "auto",
        top_k: int = 30,
        chunk_size: int = 64,
    ) -> None:
        check_learner(learner)
        check_loss_fn(loss_fn)
        for name, value in (("top_k", top_k), ("chunk_size", chunk_size)):
            check_whole(name, value)
        self.learner = learner
        self.loss_fn = loss_fn
        self.share = share
        self.temperature = temperature
        self.mixture = mixture
        self.top_k = top_k
        self.chunk_size = chunk_size
        self._fast: Fast = {}
        self._state: dict[str, Tensor] = {}
        self.check_options()

    def __len__(self) -> int:
        return len(next(iter(self._fast.values()))) if self._fast else 0

    def check_options(self) -> None:
        """Refuse a share or a temperature that makes no sense; they may have been set anew.

        Raises:
            ValueError: Naming it, what it was and what it may be.
        """
        share, temperature = self.share, self.temperature
        check_number("share", share, least=0, most=1)
        check_number("temperature", temperature, above=0)
        if self.mixture not in get_args(Mixture):
            raise ValueError(f"mixture must be one of {get_args(Mixture)}, got {self.mixture!r}.")

    @torch.no_grad()
    def remember(
        self, tasks: TaskBatch | Samples | tuple[Tensor, Tensor], *, steps: int | None = None
    ) -> None:
        """Adapts to tasks and keeps the adapted models.

        Args:
            tasks: Known tasks: of a `TaskBatch`, support and queries alike are learned from.
            steps: Inner steps; more than the learner's own pay where tasks have many samples.
        """
        self._check_unchanged()
        samples = _known(tasks)
        adapted = self.learner.adapt(samples, self.loss_fn, steps=steps)
        kept = {name: t.detach().clone() for name, t in adapted.fast.items()}
        whole = torch.stack([t.reshape(len(t), -1).isfinite().all(1) for t in kept.values()]).all(0)
        if not whole.all():
            told = f"adapting to {int((~whole).sum())} of {len(whole)} tasks with steps={steps} gave values"
            if not whole.any():
                raise ValueError(
                    f"{told} that are not finite. Take fewer steps, or the learner's own (steps=None)."
                )
            warn(f"{told} that are not finite: these tasks are not remembered. Take fewer steps.")
            kept = {name: t[whole] for name, t in kept.items()}
        if not self._fast:
            self._state = {name: t.detach().clone() for name, t in self.learner.state().items()}
            self._fast = kept
        else:
            _check_alike(self._fast, kept)
            self._fast = {name: torch.cat([t, kept[name]]) for name, t in self._fast.items()}

    def forget(self) -> None:
        """Empties the memory, e.g. because the learner was trained on."""
        self._fast, self._state = {}, {}

    @torch.no_grad()
    def adapt(
        self,
        support: Samples | tuple[Tensor, Tensor],
        loss_fn: LossFn | None = None,
        *,
        steps: int | None = None,
    ) -> Recalled:
        """The learner's adapted models of new tasks, and who else has a say.

        Args:
            support: As of `Learner.adapt`.
            loss_fn: There for who calls learners and memories alike; must be the memory's own.
            steps: Inner steps on the new tasks.
        """
        self.check_options()
        if loss_fn is not None and loss_fn is not self.loss_fn:
            raise ValueError(
                f"loss_fn must be the one that the memory was made with, {self.loss_fn}, got {loss_fn}."
            )
        samples = samples_of("support", support)
        own = self.learner.adapt(samples, self.loss_fn, steps=steps)
        if self.share == 0:
            nobody = samples.x.new_zeros(len(samples), 0)
            return Recalled(self, own, "values", nobody, nobody.long())
        _check_alike(self._fast, own.fast)
        kind = mixture_kind(self.mixture, samples.y, "softmax")
        losses = self._explain(own, samples)
        return Recalled(self, own, kind, *self._weigh(losses, self.temperature))

    @torch.no_grad()
    def tune(self, tasks: TaskBatch) -> Tuned:
        """Sets share and temperature to those with the least loss on the queries of these tasks.

        The share is 0 unless the others help for sure: what is chosen on one half of the tasks must
        lower the loss on the other half, by more than two standard errors of the paired differences.

        Args:
            tasks: Validation tasks, about a hundred or more: neither remembered ones, nor those of a test.
        """
        if not isinstance(tasks, TaskBatch):
            raise TypeError(
                f"tasks must be a TaskBatch, whose queries tell what helps, got {type(tasks).__name__}."
            )
        support, query = tasks.support, tasks.query
        own = self.learner.adapt(support, self.loss_fn)
        _check_alike(self._fast, own.fast)
        kind = mixture_kind(self.mixture, query.y, "softmax")

        def losses_of(predictions: Tensor) -> Tensor:
            losses = own.losses(self.loss_fn, predictions, query).double()
            return losses.nan_to_num(nan=EXPLODED).clamp(max=EXPLODED)

        predicted = own(query)
        alone = losses_of(predicted)
        unit = float(_tamed(alone).mean().clamp(min=torch.finfo(torch.float32).tiny))
        explained = self._explain(own, support)
        who = self._weigh(explained, 1.0)[1]
        others = self._ask(own, query, who)
        settings = [(share, unit * t) for t in TEMPERATURES for share in SHARES]
        losses = torch.stack(
            [
                losses_of(_together(predicted, others, self._weigh(explained, t)[0], share, kind))
                for share, t in settings
            ]
        )
        gains = _tamed(alone - losses)
        best = int(gains.mean(1).argmax())
        self.share, self.temperature = settings[best]
        if not _sure(gains):
            self.share = 0.0
        chosen = losses[best] if self.share else alone
        told = (float(losses.clamp(max=_cap(alone)).mean()) for losses in (chosen, alone))
        return Tuned(self.share, self.temperature, *told)

    def parameters(self) -> Iterator[Tensor]:
        """The learner's."""
        return self.learner.parameters()

    def state_dict(self) -> dict[str, Any]:
        """What was remembered and tuned; apart from the learner, which is saved by itself."""
        return {
            "fast": dict(self._fast),
            "state": dict(self._state),
            "share": self.share,
            "temperature": self.temperature,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces what is remembered by what `state_dict` returned.

        Raises:
            TypeError: It is no such dict.
            ValueError: It is incomplete or damaged, or the learner's weights are not those that it was
                remembered with. The memory is then as it was before.
        """
        check_state(state, self.learner)
        before = self.state_dict()
        self._fast, self._state = dict(state["fast"]), dict(state["state"])
        self.share, self.temperature = state["share"], state["temperature"]
        try:
            self.check_options()
            self._check_unchanged()
        except ValueError:
            self._fast, self._state = before["fast"], before["state"]
            self.share, self.temperature = before["share"], before["temperature"]
            raise

    def _remembered(self, own: Adapted) -> Adapted:
        """The remembered models, run like the learner's own."""
        return replace(own, state=self._state, fast=self._fast, runner=without_graph(own.runner))

    def _explain(self, own: Adapted, support: Samples) -> Tensor:
        """Each remembered model's loss on each task's support ``[models, tasks]``."""
        if not self._fast:
            raise ValueError("the memory is empty. Call memory.remember(training_tasks) first.")
        self._check_unchanged()
        models = self._remembered(own)
        asked, losses = models.embed(support), []
        for first in range(0, len(self), self.chunk_size):
            some = models[first : first + self.chunk_size]
            losses.append(_losses(some, self.loss_fn, some.cross(asked), support))
        return torch.cat(losses)

    def _weigh(self, losses: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Weights of the models that explain each task best, and which they are ``[tasks, top_k]``."""
        losses = torch.where(losses.isfinite(), losses, torch.inf)
        least, who = (-losses.T).topk(min(self.top_k, len(losses)), dim=1)
        # Differences first: divided by a low temperature, losses would overflow, and no model have a weight.
        lead = least - least[:, :1]
        return (lead / temperature).softmax(1).nan_to_num(0.0), who

    def _ask(self, own: Adapted, query: Samples, who: Tensor) -> Tensor:
        """What some models ``[tasks, top_k]`` say of each task's queries ``[top_k, tasks, queries, ...]``."""
        models = self._remembered(own)
        asked = models.embed(query)
        said = [models.cross(asked, models=row[None]) for row in who.T.contiguous()]
        return torch.cat(said)

    def _check_unchanged(self) -> None:
        if not self._state:
            return
        now = self.learner.state()
        device = next(iter(now.values())).device  # the learner may have been moved
        self._fast = {name: t.to(device) for name, t in self._fast.items()}
        self._state = {name: t.to(device) for name, t in self._state.items()}
        changed = [
            name
            for name, t in self._state.items()
            if name not in now or t.dtype != now[name].dtype or not torch.equal(t, now[name])
        ]
        if changed:
            raise ValueError(
                f"the learner's {changed[0]!r} is not what it was when tasks were remembered, so their "
                "adapted models are of no use to it. Call memory.forget(), and remember them again."
            )


@dataclass(frozen=True, eq=False)
class Recalled:
    """Adapted models of new tasks, in whose answers remembered ones have a say; call it as `Adapted`.

    Attributes:
        memory: Where they are remembered.
        own: The learner's own adapted models.
        kind: What is mixed.
        weights: Of remembered models in each task's answers ``[tasks, top_k]``; rows sum to 1.
        models: Which these are ``[tasks, top_k]``, in the order in which they were remembered.
    """

    memory: TaskMemory
    own: Adapted
    kind: Any
    weights: Tensor
    models: Tensor

    @torch.no_grad()
    def __call__(self, x: Tensor | Samples, mask: Tensor | None = None) -> Tensor:
        """Predictions ``[tasks, queries, *outputs]``; see `Adapted`."""
        own = self.own(x, mask)
        if not self.weights.shape[1]:
            return own
        query = x if isinstance(x, Samples) else Samples.unchecked(x, own, mask, None)
        others = self.memory._ask(self.own, query, self.models)
        return _together(own, others, self.weights, self.memory.share, self.kind)


@dataclass(frozen=True)
class Tuned:
    """What `TaskMemory.tune` found.

    Attributes:
        share: Of the remembered models.
        temperature: Of their weights.
        loss: With these, on the tasks' queries; no task counts for more than all but the worst twentieth
            do for the learner alone.
        alone: The learner's own, likewise.
    """

    share: float
    temperature: float
    loss: float
    alone: float


def _sure(gains: Tensor) -> bool:
    """Whether the best of some settings is better than nothing: ``gains [settings, tasks]``."""
    halves = gains[:, ::2], gains[:, 1::2]
    if halves[1].shape[1] == 0:
        return False
    found = torch.cat([b[a.mean(1).argmax()] for a, b in (halves, halves[::-1])])
    return bool(found.mean() > 2 * found.std() / len(found) ** 0.5)


def _tamed(values: Tensor) -> Tensor:
    """The largest twentieth lowered to what lies below: a task that exploded must not drown all others."""
    return values.clamp(max=_cap(values))


def _cap(values: Tensor) -> Tensor:
    return values.quantile(0.95, dim=-1, keepdim=True, interpolation="lower")


def _together(own: Tensor, others: Tensor, weights: Tensor, share: float, kind: Any) -> Tensor:
    """``share`` of the others' answers, and of the own models' what remains.

    Tasks that nobody explains (weights of zero), and answers that are no numbers, are the own models'.
    """
    others = torch.where(others.isfinite(), others, own)
    weights = share * weights
    mixed = torch.cat([1 - weights.sum(1, keepdim=True), weights], 1)
    return mix(torch.cat([own[None], others]), mixed, kind)


def _check_alike(remembered: Fast, other: Fast) -> None:
    """Refuse models of other shapes than the remembered ones (prototypes of more classes, say)."""
    shapes = [
        {n: list(t.shape[1:]) for n, t in part_of(fast, slice(0, 1)).items()}
        for fast in (remembered, other)
    ]
    if remembered and shapes[0] != shapes[1]:
        raise ValueError(
            f"all tasks of a memory must adapt the same tensors, got {shapes[1]} where {shapes[0]} are "
            "remembered. Give all tasks the same number of classes (ways), or keep a memory for each."
        )


def _losses(models: Adapted, loss_fn: LossFn, said: Tensor, support: Samples) -> Tensor:
    """``[models, tasks]`` from ``[models, tasks, samples, ...]``."""

    def for_all(t: Tensor) -> Tensor:
        return t.expand(len(said), *t.shape).flatten(0, 1)

    mask = None if support.mask is None else for_all(support.mask)
    every = Samples.unchecked(for_all(support.x), for_all(support.y), mask, support.ways)
    return models.losses(loss_fn, said.flatten(0, 1), every).reshape(len(said), len(support))


def _known(tasks: TaskBatch | Samples | tuple[Tensor, Tensor]) -> Samples:
    """All samples of known tasks."""
    if isinstance(tasks, Samples):
        return tasks
    if not isinstance(tasks, TaskBatch):
        return samples_of("tasks", tasks)
    s, q = tasks.support, tasks.query
    mask = None
    if s.mask is not None or q.mask is not None:
        mask = torch.cat([s.is_real(), q.is_real()], 1)
    return Samples.unchecked(torch.cat([s.x, q.x], 1), torch.cat([s.y, q.y], 1), mask, s.ways)
