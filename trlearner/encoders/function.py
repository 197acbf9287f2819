"""An encoder that describes a task by what its adapted model says."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from trlearner.base.checks import check_flag, check_whole
from trlearner.base.functional import pure_call, random_state_kept
from trlearner.base.types import State
from trlearner.encoders.protocol import Encoder, check_width
from trlearner.engines.adapted import Models
from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.nested import Nested, shown
from trlearner.tasks.samples import Samples


class FunctionEncoder(Encoder):
    """``e_i = f_i(probe)``, flattened: each adapted model's predictions on the same inputs.

    It works with every learner and sees whatever adaptation sees, labels included. It is at its best
    where few inputs show what a function is, as in low-dimensional regression. Predictions are compared
    as they are, so what all tasks' outputs have in common makes them look alike: standardize targets
    that lie far from zero. Class logits can be compared only where tasks number their classes alike.

    Layers that couple samples (BatchNorm in training mode) see the probe as one batch, and random
    layers draw for it as for any other inputs.

    Args:
        probe: Inputs ``[probes, ...]`` of the kind that the model takes. They are a buffer: saved with
            the regularizer and moved by its ``.to(...)`` and ``.double()``.
        outputs: How many numbers a prediction has; for classifiers, the number of classes.
        detach: Train the learner by nothing that the relations want.

    Example:
        >>> import trlearner as tr
        >>> learner = tr.MAML(torch.nn.Linear(1, 1), lr=0.1, steps=2)
        >>> encoder = tr.FunctionEncoder(probe=torch.linspace(-1, 1, 8)[:, None])
        >>> reg, x = tr.TRLearner(encoder=encoder), torch.rand(4, 10, 1)
        >>> reg(learner, tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x))).relations.shape
        torch.Size([4, 4])
        >>> encoder.dim
        8
    """

    probe: Tensor
    outside_graph = ("_takes",)

    def __init__(self, probe: Tensor, outputs: int = 1, detach: bool = False) -> None:
        super().__init__()
        if not isinstance(probe, torch.Tensor) or probe.ndim == 0 or probe.numel() == 0:
            got = list(probe.shape) if isinstance(probe, torch.Tensor) else type(probe).__name__
            raise ValueError(
                f"probe must be a tensor of inputs [probes, ...], at least one, got {got}. Pass e.g. "
                "torch.linspace(-5, 5, 20)[:, None]."
            )
        if not probe.isfinite().all():
            bad = (~probe.isfinite().reshape(len(probe), -1).all(1)).nonzero().flatten().tolist()
            raise ValueError(
                f"probe must be finite, got NaN or infinity in the probes {bad}. Leave them out."
            )
        check_whole("outputs", outputs)
        check_flag("detach", detach)
        self.dim = len(probe) * outputs
        self.outputs = outputs
        self.detach = detach
        self.register_buffer("probe", probe.detach())
        self._takes: weakref.WeakSet[Learner] = weakref.WeakSet()

    def prepare(self, learner: Learner | None, batch: TaskBatch) -> None:
        """Refuses a probe that is unlike the batch's inputs, before any graph is made of it."""
        x = batch.support.x
        if isinstance(x, Nested):
            raise ValueError(
                "FunctionEncoder asks all models about one tensor of inputs, but the batch's inputs are "
                f"{shown(x)}. Use UpdateEncoder or LabelledEncoder."
            )
        kinds = [(t.dtype, t.device, t.ndim) for t in (self.probe[0], x[0, 0])]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"probe must be inputs [probes, ...] like the samples of a batch, {_kind(x[0])}, got "
                f"{_kind(self.probe)}. Give each probe the shape of a sample, and move it along with "
                "the regularizer: reg.to(...), reg.double()."
            )
        if learner is not None and self.probe.shape[1:] != x.shape[2:]:
            self._check_runs(learner, x)

    def _check_runs(self, learner: Learner, x: Tensor) -> None:
        """A model may take inputs of several sizes: it is tried once with the probe's."""
        if learner in self._takes:
            return
        try:
            with torch.no_grad(), random_state_kept(x):
                pure_call(learner.model, {}, self.probe)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"probe must be inputs [probes, ...] that the model takes, like the samples of a batch, "
                f"{_kind(x[0])}, got {_kind(self.probe)}; the model said: {error}. Give each probe the "
                "shape of a sample."
            ) from error
        self._takes.add(learner)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has tried no learner yet; it must not take copies of learners along."""
        return {name: value for name, value in self.__dict__.items() if name != "_takes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was, but for the learners."""
        super().__setstate__(state)
        self._takes = weakref.WeakSet()

    def encode(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """Every model's predictions on the probe: ``[tasks, dim]``."""
        # To the models the probe is one more task, which all of them are asked about.
        asked = models.embed(
            Samples.unchecked(state["probe"][None], state["probe"][None], None, None)
        )
        answers = models.cross(asked)[:, 0]
        check_width(answers[0, 0].numel(), self.outputs, "a prediction", "outputs")
        return (answers.detach() if self.detach else answers).flatten(1)


def _kind(x: Tensor) -> str:
    return f"{list(x.shape)} of {x.dtype} on {x.device}"
