"""`TaskMemory`: models of earlier tasks predict new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trlearner.base.checks import check_flag, check_loss_fn, check_number, check_whole
from trlearner.base.types import LossFn
from trlearner.engines.adapted import Adapted, Models
from trlearner.engines.collected_models import Predict
from trlearner.learners.protocol import Learner, check_learner
from trlearner.memory.candidates import Tuned
from trlearner.memory.gaussians import ByGaussians, Kernel, by_gaussians
from trlearner.memory.keep import learned, sound
from trlearner.memory.known import Tasks, all_samples, check_one_target
from trlearner.memory.labels import Labels
from trlearner.memory.leave_one_out import judges
from trlearner.memory.options import TUNED, check_options, is_gaussian
from trlearner.memory.recall import Recalled
from trlearner.memory.remembered import (
    Remembered,
    check_alike,
    check_callables,
    own_models,
)
from trlearner.memory.softmax import BySoftmax, by_softmax
from trlearner.memory.state import check_state
from trlearner.memory.stop import STEPS
from trlearner.memory.tune import Trier, tune_gaussian, tune_softmax
from trlearner.relations.consistency import Mixture
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.samples import Samples, samples_of


class TaskMemory:
    """Predicts new tasks with models of earlier ones.

    ``answer = (1 - share) own(x) + share P(x)``, where own is the task's own adapted model and
    ``P(x) = sum_j c_j f_j(x)`` a combination of remembered models:

    - ``rule="gaussian"``: the posterior mean under Gaussians around the models that fit the new task's labels
      best (`trlearner.relations.gaussian` has the formulas). It is for targets that are numbers, and for
      predictions that estimate them.
    - ``rule="softmax"``: ``c_j = softmax_j(-loss(f_j, support) / temperature)``. It is also what class labels
      (integer targets) get under either rule: logits are mixed as probabilities.

    It is for a learner that has been trained: what is remembered is worth nothing to other weights, so
    their change is an error. Let it `remember` the training tasks with all of their samples, and `tune` its
    settings. Tasks must share what outputs mean: class c of one task must be class c of another. Where the
    others do not help, `tune` sets the share to 0 and answers are the learner's own.

    A memory needs no learner: `remember_models` takes any callables, and own models are passed to `adapt`.

    Args:
        learner: Adapts, and has adapted to what is remembered; ``None`` for models of your own.
        loss_fn: ``(predictions [samples, ...], targets [samples, ...]) -> scalar``, for one task.
        rule: See above.
        kernel: ``(a [n, ...], b [m, ...]) -> [n, m]``, how alike inputs of one task are. With it, the
            Gaussian rule's prior mean is the own model, and nothing need be remembered.
        neighbours: K, so many models the Gaussian rule combines; all, if there are no more.
        spread: h, how far a new task may lie from remembered ones, in units of the spread of these K.
        noise: σ², the variance of the labels' noise, a number or a tensor ``[*outputs]``; by default 0.01
            times the variance of the labels remembered.
        share: Of P in the answer, from 0 to 1; by default 1 by the Gaussian and 0.5 by the softmax rule.
            Without own models it is 1.
        temperature: Of the softmax rule's weights.
        mixture: What the softmax rule mixes, as of `TRLearner`: predictions, or logits.
        top_k: So many models the softmax rule mixes.
        chunk_size: So many models are asked at once.

    These are attributes, too, and `tune` sets some of them. K, h and σ² were chosen on validation tasks of
    three problems on curves, and confirmed on fresh test tasks.

    Attributes:
        kernel_scale: b, the kernel's weight, by default the variance of the labels remembered.
        std_scale: What deviations are multiplied by. `tune` lets 95 % of its tasks' labels lie within 1.96.
        left_out: How many models were not remembered, by reason.

    Example:
        >>> import trlearner as tr
        >>> _ = torch.manual_seed(0)
        >>> def lines(tasks):
        ...     x, slope = torch.rand(tasks, 15, 1), torch.rand(tasks, 1, 1)
        ...     return tr.TaskBatch((x[:, :5], slope * x[:, :5]), (x[:, 5:], slope * x[:, 5:]))
        >>> learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=2)  # and train it
        >>> memory = tr.TaskMemory(learner)
        >>> memory.remember(lines(50))
        >>> len(memory)
        50
        >>> tuned, new = memory.tune(), lines(4)
        >>> answers, deviations = memory.adapt(new.support)(new.query.x, std=True)
        >>> answers.shape == deviations.shape == new.query.y.shape
        True
    """

    def __init__(
        self,
        learner: Learner | None = None,
        loss_fn: LossFn = nn.functional.mse_loss,
        *,
        rule: Literal["gaussian", "softmax"] = "gaussian",
        kernel: Kernel | None = None,
        neighbours: int = 80,
        spread: float = 0.5,
        noise: float | Tensor | None = None,
        share: float | None = None,
        temperature: float = 0.1,
        mixture: Mixture = "auto",
        top_k: int = 30,
        chunk_size: int = 64,
    ) -> None:
        if learner is not None:
            check_learner(learner)
        check_loss_fn(loss_fn)
        self.learner, self.loss_fn = learner, loss_fn
        self.rule: Literal["gaussian", "softmax"] = rule
        self.neighbours, self.spread, self.noise = neighbours, spread, noise
        self.kernel, self.kernel_scale = kernel, None
        self.share, self.std_scale = share, 1.0
        self.temperature, self.mixture = temperature, mixture
        self.top_k, self.chunk_size = top_k, chunk_size
        check_options(self)
        self.forget()

    def forget(self) -> None:
        """Empties the memory, e.g. because the learner was trained on."""
        self._kept, self._labels = Remembered(), Labels()
        self.left_out: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def remember(self, tasks: Tasks, *, steps: int | None = None, held_out: float = 0.2) -> None:
        """Adapts to tasks and keeps the adapted models.

        Each task stops where its held-out samples are predicted best: after 1, 5, 20, 50, 100 or all steps.
        Then it learns again from all of its samples, with as many steps. Left out are models that are not
        finite, that predict their held-out samples worse than a constant does, or that leave the range of
        labels on inputs of remembered tasks. A warning and `left_out` say how many.

        Args:
            tasks: Known tasks: of a `TaskBatch`, support and queries are learned from.
            steps: The most inner steps. By default 300, or the learner's own where targets are class labels.
            held_out: The share of each task's samples that is held out. With 0, and where targets are class
                labels, all steps are taken, and all models that are finite are remembered.

        Raises:
            ValueError: No model is worth remembering, or tasks do not go with what is remembered.
        """
        if self.learner is None:
            raise ValueError(
                "learner must be given to adapt to tasks, got None. Make the memory with "
                "tr.TaskMemory(learner), or pass models of your own to memory.remember_models(models)."
            )
        self._check_unchanged()
        check_whole("steps", steps, least=0, optional=True)
        check_number("held_out", held_out, least=0, most=0.9)
        samples = all_samples(tasks)
        numbers = samples.y.is_floating_point()
        if steps is None:
            steps = STEPS if numbers and self.learner.steps else self.learner.steps
        share = held_out if numbers else 0.0
        more = (share, self._labels, self.chunk_size)
        models, kept = learned(self.learner, samples, self.loss_fn, steps, *more)
        known = tasks if isinstance(tasks, TaskBatch) else samples
        self._kept.add_adapted(models[kept.tasks], known[kept.tasks])
        self._labels, self.left_out = kept.labels, kept.with_others(self.left_out)

    @torch.no_grad()
    def remember_models(
        self, models: Sequence[Predict], tasks: Tasks | None = None, *, together: bool = False
    ) -> None:
        """Keeps models that were adapted elsewhere, by a loop of your own or of another kind.

        They are called under ``torch.no_grad()``, and cannot be saved. Where their tasks are given, models
        are left out as by `remember`, judged by all samples of their task.

        Args:
            models: Callables, from inputs ``[samples, ...]`` to predictions ``[samples, ...]``, as tensors.
            tasks: What they belong to, one task for each: it tells the variance of labels, and `tune` judges
                settings by it.
            together: Ask each model once for all tasks' samples; not where a prediction depends on the other
                samples (BatchNorm in training mode).

        Raises:
            TypeError: Something cannot be called.
            ValueError: There is not one task for each model, or no model is worth remembering.
        """
        check_flag("together", together)
        if tasks is None:
            check_callables("models", models)
            self._kept.add_callables(list(models), None, together)
            return
        samples = all_samples(tasks)
        check_callables("models", models, len(samples))
        kept = sound(list(models), samples, self._labels, together, self.chunk_size)
        some = [model for model, good in zip(models, kept.tasks.tolist(), strict=True) if good]
        known = tasks if isinstance(tasks, TaskBatch) else samples
        self._kept.add_callables(some, known[kept.tasks], together)
        self._labels, self.left_out = kept.labels, kept.with_others(self.left_out)

    @torch.no_grad()
    def adapt(
        self,
        support: Samples | tuple[Tensor, Tensor],
        loss_fn: LossFn | None = None,
        *,
        steps: int | None = None,
        own: Sequence[Predict] | None = None,
    ) -> Recalled:
        """Own models of new tasks, and which remembered ones contribute.

        Args:
            support: As of `Learner.adapt`.
            loss_fn: There for who calls learners and memories alike; must be the memory's own.
            steps: Inner steps on the new tasks.
            own: The tasks' own models, one for each, where the memory has no learner. Without them answers
                are the remembered models' alone.

        Raises:
            ValueError: The memory is empty, does not go with these tasks, or the learner changed.
        """
        check_options(self)
        if loss_fn is not None and loss_fn is not self.loss_fn:
            raise ValueError(
                f"loss_fn must be the one that the memory was made with, {self.loss_fn}, got {loss_fn}."
            )
        samples = samples_of("support", support)
        check_one_target(samples)
        models = own_models(self.learner, samples, self.loss_fn, steps, own)
        gaussian, share = is_gaussian(self, samples), self.share
        related: ByGaussians | BySoftmax | None = None
        if models is None or share is None:
            share = 1.0 if models is None or gaussian else 0.5
        if share > 0:
            self._check_filled(models)
            if gaussian:
                related = by_gaussians(self, self._kept, self._labels, models, samples)
            else:
                related = by_softmax(self, self._kept, self.loss_fn, models, samples)
        more = (self._kept, self.chunk_size, self.std_scale, len(samples))
        return Recalled(models, share, related, *more)

    @torch.no_grad()
    def tune(
        self,
        tasks: TaskBatch | None = None,
        *,
        shots: int | None = None,
        own: Sequence[Predict] | None = None,
    ) -> Tuned:
        """Sets share and the rule's settings to those with the least loss on the queries of some tasks.

        Without validation tasks these are the remembered tasks, each predicted by the models of the others. A
        learner that was trained on them favours its own models a little.

        The share is 0 unless the others help for sure: what is chosen on one half of the tasks must
        lower the loss on the other half, by more than two standard errors of the paired differences.

        Args:
            tasks: Validation tasks, about a hundred or more: neither remembered ones, nor those of a test. By
                default the remembered tasks, at most 500 of them, and 32 queries of each.
            shots: Without validation tasks: so many random samples of each task are its support. By default
                support and queries are those that the tasks were remembered with.
            own: As of `adapt`, one model for each of the validation tasks.

        Raises:
            TypeError: Tasks are no `TaskBatch`.
            ValueError: The memory is empty, holds no samples of its tasks, or does not know their support.
        """
        check_options(self)
        check_whole("shots", shots, optional=True)
        tasks_to_judge = judges(tasks, own, shots, self._kept, self.learner)
        has_own = self.learner is not None or own is not None

        def own_of(support: Samples, places: Tensor) -> Models | None:
            given = None if own is None else [own[place] for place in places.tolist()]
            models = own_models(self.learner, support, self.loss_fn, None, given)
            self._check_filled(models)
            return models

        trier = Trier(self._kept, self.loss_fn, own_of, has_own, tasks_to_judge, self.chunk_size)
        if is_gaussian(self, tasks_to_judge[0][0].query):
            return tune_gaussian(self, trier, self._labels)
        return tune_softmax(self, trier)

    def parameters(self) -> Iterator[Tensor]:
        """The learner's."""
        return iter(()) if self.learner is None else self.learner.parameters()

    def state_dict(self) -> dict[str, Any]:
        """What was remembered and tuned; apart from the learner, which is saved by itself, and from samples.

        It holds plain tensors and numbers: ``torch.load(..., weights_only=True)`` loads it.

        Raises:
            ValueError: Callables are remembered, which cannot be saved.
        """
        if self._kept.callables:
            raise ValueError(
                f"callables cannot be saved, and {len(self._kept.callables)} are remembered. Save them in "
                "your own way, and pass them to memory.remember_models(models) again."
            )
        return {
            "fast": dict(self._kept.fast),
            "state": dict(self._kept.state),
            "labels": self._labels.state_dict(),
            "rule": self.rule,
            **{name: getattr(self, name) for name in TUNED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces what is remembered by what `state_dict` returned.

        Samples of remembered tasks are not saved: `tune` needs validation tasks then.

        Raises:
            TypeError: It is no such dict.
            ValueError: It is incomplete or damaged, or the learner's weights are not those that it was
                remembered with. The memory is then as it was before.
        """
        check_state(state, self.learner, self.rule)
        before = dict(self.__dict__)
        self.forget()
        self._kept = Remembered(dict(state["fast"]), dict(state["state"]))
        self._labels.load_state_dict(state["labels"])
        for name in TUNED:
            setattr(self, name, state[name])
        try:
            check_options(self)
            self._check_unchanged()
        except ValueError:
            self.__dict__.update(before)
            raise

    def _check_filled(self, own: Models | None) -> None:
        """Refuse an empty memory, unless own models and a kernel predict without it."""
        if not len(self) and (self.kernel is None or own is None or self.rule != "gaussian"):
            raise ValueError("the memory is empty. Call memory.remember(training_tasks) first.")
        self._check_unchanged()
        if isinstance(own, Adapted):
            check_alike(self._kept.fast, own.fast)

    def _check_unchanged(self) -> None:
        if self.learner is not None:
            self._kept.check_unchanged(self.learner)
