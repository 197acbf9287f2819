"""The Gaussian rule: the posterior around the models that fit a task's labels best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trlearner.engines.adapted import Models
from trlearner.memory.labels import NOISE, Labels
from trlearner.memory.options import Settings
from trlearner.memory.remembered import Remembered, own_predictions
from trlearner.relations.gaussian import gaussian_posterior, posterior_mean, posterior_variance
from trlearner.relations.posterior import Posterior
from trlearner.tasks.nested import Data, raw, shown
from trlearner.tasks.samples import Samples

Kernel = Callable[[Tensor, Tensor], Tensor]
"""``(a [n, ...], b [m, ...]) -> [n, m]``, positive semidefinite: how alike the inputs of one task are."""


@dataclass(frozen=True, eq=False)
class ByGaussians:
    """What `trlearner.relations.gaussian` made of the tasks' labels.

    Attributes:
        posterior: Models and their coefficients.
        kernel: Between inputs, or ``None``.
        support: The tasks' support samples, for the kernel.
    """

    posterior: Posterior
    kernel: Kernel | None
    support: Samples

    @property
    def models(self) -> Tensor:
        """Which models, the best first ``[tasks, kept]``."""
        return self.posterior.models

    @property
    def weights(self) -> Tensor:
        """Their coefficients ``[tasks, kept, *outputs]``; the sum is 1, or 0 around a prior mean."""
        return self.posterior.coefficients

    def mean(self, own: Tensor | None, others: Tensor, kernel: Tensor | None = None) -> Tensor:
        """P(x) ``[tasks, queries, *outputs]``; the own model's, where no model is usable or P is no number.

        Args:
            own: The own model's answers ``[tasks, queries, *outputs]``, if there is one.
            others: Those of the models ``[tasks, kept, queries, *outputs]``.
            kernel: Between queries and support ``[tasks, queries, shots]``, if the rule has one.
        """
        prior = own if self.posterior.around_prior else None
        found = posterior_mean(self.posterior, others, prior=prior, kernel=kernel)
        if own is None:
            return found
        alone = not self.posterior.around_prior
        some = self.posterior.usable.any(1) | (not alone)
        sound = found.isfinite() & some.reshape(-1, *[1] * (found.ndim - 1))
        return torch.where(sound, found, own.to(found.dtype))

    def deviation(
        self,
        own: Tensor | None,
        others: Tensor,
        mean: Tensor,
        share: float,
        query: Samples,
        kernel: Tensor | None = None,
    ) -> Tensor:
        """The standard deviation of labels around the answer ``[tasks, queries, *outputs]``.

        The posterior of a label has mean P and variance Var + σ². The answer lies (1 - share) (own - P) from
        P, so that labels deviate from the answer by sqrt(Var + σ² + (1 - share)² (own - P)²).

        Args:
            own: As of `mean`.
            others: As of `mean`.
            mean: P.
            share: Of P in the answer.
            query: The queries.
            kernel: As of `mean`.
        """
        itself = None
        if self.kernel is not None:
            itself = kernel_matrix(self.kernel, query.x, query.x).diagonal(dim1=1, dim2=2)
        variance = posterior_variance(
            self.posterior, others, kernel=kernel, kernel_itself=itself, of_labels=True
        )
        if own is not None:
            variance = variance + ((1 - share) * (own - mean)).square()
        return variance.sqrt()

    def kernel_between(self, query: Samples) -> Tensor | None:
        """Between queries and support ``[tasks, queries, shots]``."""
        if self.kernel is None:
            return None
        return kernel_matrix(self.kernel, query.x, self.support.x)


@dataclass(frozen=True)
class Gaussians:
    """The rule's settings.

    Attributes:
        neighbours: K, so many models are the centres of Gaussians.
        spread: h.
        noise: σ² ``[*outputs]``.
        kernel: Between inputs, or ``None``.
        kernel_scale: b.
    """

    neighbours: int
    spread: float
    noise: Tensor
    kernel: Kernel | None = None
    kernel_scale: float = 1.0

    def __call__(
        self,
        said: Tensor,
        support: Samples,
        own: Tensor | None,
        matrix: Tensor | None = None,
    ) -> ByGaussians:
        """What the labels of new tasks say of models.

        Args:
            said: What the models say of the supports ``[tasks, models, shots, *outputs]``.
            support: The tasks' support samples.
            own: What the own models say of them; with a kernel, the prior mean.
            matrix: The kernel on the support, if it is known.

        Raises:
            ValueError: The models' answers are no estimates of the labels.
        """
        y = support.y
        if said.shape[2:] != y.shape[1:]:
            raise ValueError(
                f"rule='gaussian' compares models' answers with labels, which must have one shape, got "
                f"outputs of shape {tuple(said.shape[3:])} and {tuple(y.shape[2:])}. Use "
                "rule='softmax' where only the loss knows what answers mean."
            )
        prior, scale = None, {}
        if self.kernel is not None:
            if matrix is None:
                matrix = kernel_matrix(self.kernel, support.x, support.x)
            prior, scale = own, {"kernel": matrix, "kernel_scale": self.kernel_scale}
        least = 0 if prior is not None else 1
        posterior = gaussian_posterior(
            said,
            y,
            noise=self.noise,
            spread=self.spread,
            neighbours=max(least, min(self.neighbours, said.shape[1])),
            mask=support.mask,
            prior=prior,
            **scale,  # type: ignore[arg-type]
        )
        return ByGaussians(posterior, self.kernel, support)


def by_gaussians(
    settings: Settings, kept: Remembered, labels: Labels, own: Models | None, support: Samples
) -> ByGaussians:
    """By the Gaussian rule.

    Args:
        settings: The memory's.
        kept: What it remembers.
        labels: Of the remembered tasks.
        own: The new tasks' own models.
        support: Their support samples.

    Raises:
        ValueError: Nothing says how noisy labels are.
    """
    noise, scale, unit = settings.noise, settings.kernel_scale, labels.variance()
    if noise is None:
        if not labels.count:
            raise ValueError(
                "noise must be given where the memory knows no labels, got None. Pass the tasks of your "
                "models, memory.remember_models(models, tasks), call memory.tune(validation_tasks), or set "
                "memory.noise."
            )
        noise = NOISE * unit
    if scale is None:
        scale = float(unit.mean()) if labels.count else 1.0
    device = support.y.device
    noise = torch.as_tensor(noise, dtype=torch.float64, device=device)
    rule = Gaussians(settings.neighbours, settings.spread, noise, settings.kernel, scale)
    said = kept.say(own, support, settings.chunk_size)
    prior = None if own is None or settings.kernel is None else own_predictions(own, support)
    return rule(said, support, prior)


def kernel_matrix(kernel: Kernel, a: Data, b: Data) -> Tensor:
    """Task by task, ``[tasks, n, m]`` of inputs ``[tasks, n, ...]`` and ``[tasks, m, ...]``.

    Raises:
        TypeError: It is no tensor.
        ValueError: It has another shape.
    """
    rows = []
    for task in range(len(a)):
        one, other = a[task], b[task]
        found = kernel(raw(one), raw(other))
        expected = (len(one), len(other))
        if not isinstance(found, Tensor):
            raise TypeError(
                f"kernel(a, b) must return a tensor [n, m] = {expected}, got {type(found).__name__}."
            )
        if tuple(found.shape) != expected:
            raise ValueError(
                f"kernel(a, b) must return [n, m] = {expected} for a {shown(one)} and b "
                f"{shown(other)}, got {list(found.shape)}. It is called with the inputs of one task."
            )
        rows.append(found)
    return torch.stack(rows)
