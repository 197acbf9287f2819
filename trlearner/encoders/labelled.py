"""An encoder that looks at the targets as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from torch.nn.parameter import UninitializedParameter

from trlearner.base.checks import check_flag, check_whole
from trlearner.base.functional import random_state_kept
from trlearner.base.types import State
from trlearner.encoders.protocol import Encoder, check_width
from trlearner.engines.adapted import Models
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch, check_batch
from trlearner.tasks.nested import flat
from trlearner.tasks.prototype import batch_prototypes
from trlearner.tasks.samples import Samples
from trlearner.tasks.select import Select, check_select


class LabelledEncoder(Encoder):
    """A small learned set encoder over a task's labelled support samples.

    For regression, ``e_i = C mean_s gelu(A g(x_s) + B y_s + a) + c`` over the support; for class labels
    (a batch with `ways`) ``e_i = C mean_c gelu(A p_c + a) + c`` over the class prototypes p_c, which
    does not depend on how a task numbers its classes.

    Args:
        extractor: g, as for `InputEncoder`; ``None`` takes the inputs themselves.
        dim: The width of an embedding.
        features: The width of g(x); by default it is found at the first batch, and an optimizer, a copy or a
            count of parameters made before that misses some. `for_batch` finds all widths at once.
        targets: The width of a regression target; by default found as `features` is.
        hidden: The width of the hidden layer.
        detach: Train g by nothing that the relations want.
        own: Make g a part of the regularizer: trained, saved and moved with it. Leave it out where g is a
            part of the learner's model, of a model that your own loop trains, or frozen.
        select: Look only at the most telling of a task's support samples: a share of them (``0.5``), a
            number (``5``), or those at ``select(features, support)``.
        ways: The number of classes, where targets are labels: then there is no layer for targets.

    Example:
        >>> LabelledEncoder(None, dim=16, features=1, targets=1).of_features
        Linear(in_features=1, out_features=64, bias=True)
    """

    def __init__(
        self,
        extractor: nn.Module | None,
        dim: int,
        features: int | None = None,
        targets: int | None = None,
        hidden: int = 64,
        detach: bool = False,
        own: bool = False,
        select: Select | None = None,
        ways: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("hidden", hidden)):
            check_whole(name, value)
        check_whole("ways", ways, least=2, optional=True)
        if ways is not None and targets is not None:
            raise ValueError(
                f"ways={ways} is for labels and targets={targets} for numbers: pass one of them."
            )
        for name, width in (("features", features), ("targets", targets)):
            check_whole(name, width, optional=True)
        check_flag("detach", detach)
        check_select(select)
        self.dim = dim
        self.extractor = Extractor(extractor, own)
        self.detach = detach
        self.select = select
        self.of_features = (
            nn.LazyLinear(hidden) if features is None else nn.Linear(features, hidden)
        )
        self.of_targets: nn.Linear | None = None
        if ways is None and targets is None:
            self.of_targets = nn.LazyLinear(hidden, bias=False)
        elif targets is not None:
            self.of_targets = nn.Linear(targets, hidden, bias=False)
        self.out = nn.Linear(hidden, dim)

    @classmethod
    def for_batch(
        cls, batch: TaskBatch, dim: int, extractor: nn.Module | None = None, **options: Any
    ) -> LabelledEncoder:
        """An encoder of the widths that a batch shows, all of whose parameters exist from the start.

        Args:
            batch: Of tasks like those to come.
            dim: The width of an embedding.
            extractor: g; ``None`` takes the inputs themselves.
            **options: Others of the constructor's.

        Example:
            >>> x = torch.zeros(4, 5, 3)
            >>> encoder = LabelledEncoder.for_batch(
            ...     TaskBatch((x, x[..., :2]), (x, x[..., :2])), dim=16
            ... )
            >>> encoder.of_features.in_features, encoder.of_targets.in_features
            (3, 2)
        """
        check_batch(batch)
        x, y = batch.support.x[:1, :2], batch.support.y[:1, :2]
        with torch.no_grad(), random_state_kept(x):
            features = Extractor(extractor).run(None, {}, {}, x).shape[-1]
        if batch.support.labelled and batch.ways is None:
            raise ValueError("batch must say how many classes there are: TaskBatch(..., ways=5).")
        widths = (
            {"ways": batch.ways} if batch.support.labelled else {"targets": flat(y, 2).shape[-1]}
        )
        return cls(extractor, dim, features=features, **widths, **options)

    def prepare(self, learner: Learner | None, batch: TaskBatch) -> None:
        """Gives layers of unknown width the width that this batch shows."""
        if self.of_targets is None and not batch.support.labelled:
            raise ValueError(
                "LabelledEncoder(..., ways=) is for class labels, but the batch's targets are numbers. Pass "
                "targets= in its place."
            )
        if not any(isinstance(p, UninitializedParameter) for p in self.parameters()):
            return
        x, y = batch.support.x[:1, :2], batch.support.y[:1, :2]
        with torch.no_grad(), random_state_kept(x):
            # A width that is still unknown shows in its layer's first call.
            features = self.extractor.run(None, {}, {}, x).to(self.out.weight.dtype)
            self.of_features(features)
            if self.of_targets is not None:
                labels = batch.support.labelled
                self.of_targets(features[..., :1] if labels else flat(y, 2).to(features))

    def encode(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """The set encoding of every task: ``[tasks, dim]``."""
        support = batch.support
        if self.select is not None:
            support = self.extractor.select(self.select, models, state, support)
        features = self._features(models, state, support)
        width = state["of_features.weight"].shape[1]
        if features.shape[-1] != width:
            check_width(features.shape[-1], width, "g(x)", "features")
        elements, real = features, support.mask
        if support.labelled:
            elements, count = batch_prototypes(features, support)
            real = count > 0
        hidden = linear(elements, state["of_features.weight"], state["of_features.bias"])
        if not support.labelled:
            y = flat(support.y, 2)
            width = state["of_targets.weight"].shape[1]
            if y.shape[-1] != width:
                check_width(y.shape[-1], width, "a target", "targets")
            hidden = hidden + linear(y.to(hidden), state["of_targets.weight"])
        pooled = _masked_mean(gelu(hidden), real)
        return linear(pooled, state["out.weight"], state["out.bias"])

    def prototypes(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """Mean features ``[tasks, classes, features]`` of the support's classes."""
        means, _ = batch_prototypes(self._features(models, state, batch.support), batch.support)
        return means

    def _features(self, models: Models, state: State, support: Samples) -> Tensor:
        features = self.extractor.features(models, state, support.x, support.mask)
        features = features.to(self.out.weight.dtype)
        return features.detach() if self.detach else features


def _masked_mean(values: Tensor, real: Tensor | None) -> Tensor:
    """``[tasks, elements, ...] -> [tasks, ...]``, over the real elements."""
    if real is None:
        return values.mean(1)
    weight = real[..., None].to(values)
    return (values * weight).sum(1) / weight.sum(1)
