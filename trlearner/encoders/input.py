"""The paper's encoder: a task is the mean of its inputs' features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from trlearner.base.checks import check_flag, check_whole
from trlearner.base.types import State
from trlearner.encoders.protocol import Encoder, check_width
from trlearner.engines.adapted import Models
from trlearner.learners.extractor import Extractor
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.prototype import batch_prototypes
from trlearner.tasks.select import Select, check_select


class InputEncoder(Encoder):
    """``e_i = mean of g(x)`` over task i's meta-data (arXiv 2409.08474).

    It sees no labels: tasks that share their inputs look alike to it. Use `LabelledEncoder` there.

    Args:
        extractor: g, maps ``[samples, ...]`` to features that are flattened; ``None`` takes the inputs
            themselves. It may be a part of the learner's model.
        dim: The width of g(x).
        metadata: ``"support"``, or ``"all"`` for support and query inputs.
        detach: Train g by nothing that the relations want.
        own: Make g a part of the regularizer: trained, saved and moved with it. Leave it out where g is a
            part of the learner's model, of a model that your own loop trains, or frozen.
        select: Look only at the most telling of a task's support samples: a share of them (``0.5``), a
            number (``5``), or those at ``select(features, support)``.

    Example:
        >>> encoder = InputEncoder(nn.Linear(2, 8), dim=8, own=True)
        >>> sum(p.numel() for p in encoder.parameters())
        24
    """

    def __init__(
        self,
        extractor: nn.Module | None,
        dim: int,
        metadata: Literal["support", "all"] = "support",
        detach: bool = False,
        own: bool = False,
        select: Select | None = None,
    ) -> None:
        super().__init__()
        if metadata not in ("support", "all"):
            raise ValueError(f"metadata must be 'support' or 'all', got {metadata!r}.")
        check_whole("dim", dim)
        check_flag("detach", detach)
        check_select(select)
        self.dim = dim
        self.extractor = Extractor(extractor, own)
        self.metadata = metadata
        self.detach = detach
        self.select = select

    def encode(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """The mean feature of every task: ``[tasks, dim]``."""
        support = batch.support
        if self.select is not None:
            support = self.extractor.select(self.select, models, state, support)
        sets = [support] if self.metadata == "support" else [support, batch.query]
        sums, counts = [], []
        for samples in sets:
            features = self.extractor.features(models, state, samples.x, samples.mask)
            check_width(features.shape[-1], self.dim, "the extractor's features", "dim")
            real = torch.ones_like(features[..., 0]) if samples.mask is None else samples.mask
            sums.append((features * real[..., None]).sum(1))
            counts.append(real.sum(1)[:, None])
        embeddings = torch.stack(sums).sum(0) / torch.stack(counts).sum(0)
        return embeddings.detach() if self.detach else embeddings

    def prototypes(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """Mean features ``[tasks, classes, features]`` of the support's classes."""
        support = batch.support
        features = self.extractor.features(models, state, support.x, support.mask)
        means, _ = batch_prototypes(features.detach() if self.detach else features, support)
        return means
