"""Prototypical networks (Snell et al. 2017, arXiv 1703.05175)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.types import Fast, State
from trlearner.engines.task_learner import InnerLoop
from trlearner.learners.protocol import Learner
from trlearner.tasks.model_call import Call
from trlearner.tasks.nested import Data, flat
from trlearner.tasks.prototype import class_means

ABSENT = -1e4
"""The logit of a class without support samples: as good as impossible, yet finite."""


class ProtoNet(Learner):
    """Classifies by distance to the mean feature of each class; no gradient is descended.

    The logits are ``-|g(x) - p_c|^2``, and ``-1e4`` for a class that a task's support lacks. Batches
    need `ways`.

    Args:
        extractor: Maps inputs ``[samples, ...]`` to features, flattened to ``[samples, features]``.
        engine: ``"auto"``, ``"tune"``, ``"higher"``, ``"loop"``, ``"channels_last"``, ``"batched"`` or
            ``"compiled"``.
        call: As in `MAML`.
        output: As in `MAML`.
    """

    def __init__(
        self,
        extractor: nn.Module,
        engine: str = "auto",
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(extractor, engine=engine, call=call, output=output)

    def embed(self, state: State, x: Data) -> Any:
        """The features ``[samples, features]``, which no task changes."""
        return flat(self.run(self.model_state(state), x), 1)

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """The prototypes of the task's classes."""
        ways, labels = loop.ways, loop.targets
        if ways is None or not isinstance(labels, Tensor):
            raise ValueError(
                "ProtoNet needs the number of classes: build TaskBatch(..., ways=5) and pass "
                "batch.support, or Samples(x, y, ways=5)."
            )

        def prototypes(features: Tensor, labels: Tensor, mask: Tensor) -> Fast:
            means, counts = class_means(features, labels, ways, mask)
            return {"prototypes": means, "counts": counts}

        mask = torch.ones_like(labels, dtype=torch.bool) if loop.mask is None else loop.mask
        return loop.lift(prototypes)(loop.features, labels, mask)

    def predict(self, state: State, fast: Fast, features: Any) -> Any:
        """Logits ``[samples, classes]``."""
        distance = (features[:, None] - fast["prototypes"][None]).square().sum(-1)
        return torch.where(fast["counts"] > 0, -distance, ABSENT)
