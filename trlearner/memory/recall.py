"""What new tasks' own models and remembered ones answer together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from trlearner.base.checks import check_flag
from trlearner.engines.adapted import Models
from trlearner.memory.gaussians import ByGaussians
from trlearner.memory.remembered import Remembered, own_predictions
from trlearner.memory.softmax import BySoftmax
from trlearner.relations.consistency import mix
from trlearner.tasks.nested import as_data, have_tasks, shown
from trlearner.tasks.samples import Samples, check_mask


@dataclass(frozen=True, eq=False)
class Recalled:
    """Adapted models of new tasks, to whose answers remembered ones contribute; call it as `Adapted`.

    Attributes:
        own: The tasks' own adapted models; ``None`` for a memory that has none.
        share: Of the remembered models in the answer.
        related: What the rule made of the tasks' labels; ``None`` where the share is 0.
        remembered: Who is asked.
        chunk_size: So many at once.
        std_scale: What deviations are multiplied by.
        tasks: How many there are.
    """

    own: Models | None
    share: float
    related: ByGaussians | BySoftmax | None
    remembered: Remembered
    chunk_size: int
    std_scale: float
    tasks: int

    @property
    def weights(self) -> Tensor:
        """What each model contributes: ``[tasks, kept]``, or by Gaussians ``[tasks, kept, *outputs]``.

        The sum is 1; by Gaussians some are negative, and around a prior mean (with a kernel) the sum is 0.
        """
        return torch.zeros(self.tasks, 0) if self.related is None else self.related.weights

    @property
    def models(self) -> Tensor:
        """Which models these are ``[tasks, kept]``, those that explain a task best first.

        They are counted in the order in which they were remembered, callables behind the learner's.
        """
        if self.related is None:
            return torch.zeros(self.tasks, 0, dtype=torch.long)
        return self.related.models

    @overload
    def __call__(
        self, x: Any, mask: Tensor | None = None, *, std: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def __call__(
        self, x: Any, mask: Tensor | None = None, *, std: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @torch.no_grad()
    def __call__(self, x: Any, mask: Tensor | None = None, *, std: bool = False) -> Any:
        """Predictions ``[tasks, queries, *outputs]``.

        Args:
            x: As of `Adapted.predict`.
            mask: As of `Adapted.predict`.
            std: Also return the standard deviation of labels around the answers, of the same shape. It needs
                the Gaussian rule and a share above 0.

        Raises:
            ValueError: Inputs are not those of these tasks, or there is no standard deviation.
        """
        check_flag("std", std)
        self._check_deviation(std)
        query = self._query(x, mask)
        own = None if self.own is None else own_predictions(self.own, query)
        if self.related is None:
            return own
        others = self._ask(query)
        if isinstance(self.related, BySoftmax):
            return blend(own, self.related.mean(own, others), self.share, self.related.kind)
        kernel = self.related.kernel_between(query)
        mean = self.related.mean(own, others, kernel)
        answer = blend(own, mean, self.share, "values")
        if not std:
            return answer
        deviation = self.related.deviation(own, others, mean, self.share, query, kernel)
        return answer, self.std_scale * deviation

    def _ask(self, query: Samples) -> Tensor:
        """What the chosen models say ``[tasks, kept, queries, *outputs]``."""
        if self.models.shape[1]:
            return self.remembered.say_chosen(self.own, query, self.models, self.chunk_size)
        assert isinstance(self.related, ByGaussians)
        shape = (self.tasks, 0, query.x.shape[1], *self.related.posterior.outputs)
        return torch.zeros(shape, dtype=self.related.posterior.dtype, device=query.x.device)

    def _query(self, x: Any, mask: Tensor | None) -> Samples:
        if isinstance(x, Samples):
            mask, x = x.mask, x.x
        x = as_data(x)
        if not have_tasks(x, self.tasks):
            raise ValueError(
                f"x must be [tasks, queries, ...] with tasks = {self.tasks}, got {shown(x)}. Pass the "
                "queries of the tasks that were adapted to."
            )
        if mask is not None:
            check_mask(mask, x)
        return Samples.unchecked(x, x, mask, None)

    def _check_deviation(self, std: bool) -> None:
        if not std or isinstance(self.related, ByGaussians):
            return
        if self.related is None:
            raise ValueError(
                "std=True needs a share above 0: the tasks' own models have no variance. memory.tune() sets "
                "the share to 0 where remembered models do not help for sure."
            )
        raise ValueError(
            "std=True needs rule='gaussian' and targets that are numbers; a softmax mixture has no variance."
        )


def blend(own: Tensor | None, mean: Tensor, share: float, kind: Any) -> Tensor:
    """``(1 - share) * own + share * mean``; logits as probabilities."""
    if own is None or share == 1:  # own answers that exploded would not vanish by a weight of 0
        return mean
    weights = torch.tensor([1 - share, share], dtype=mean.dtype, device=mean.device)
    both = torch.stack([own.to(mean.dtype), mean])
    return mix(both, weights.expand(len(own), 2), kind)
