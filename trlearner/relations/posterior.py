"""What the labels of new tasks say of remembered models, as `trlearner.relations.gaussian` computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the labels of each task say of remembered models; made by `gaussian_posterior`.

    All tensors are in double precision, with outputs flattened to one axis that follows the tasks.

    Attributes:
        models: The chosen models, the best first.
        usable: False for a model whose predictions of the support are not finite; its coefficient is 0.
        real: False for padding.
        predictions: F, what the chosen models say of the support.
        labels: y.
        factor: L.
        residual: A⁻¹ (y − m), where m is wᵀF or the prior mean.
        shares: w.
        combination: c.
        covariance: h²/K.
        kernel_scale: b, or ``None`` without a kernel.
        noise: σ².
        around_prior: Whether a prior mean was given.
        outputs: The outputs' axes, as they were given.
        dtype: Of what is returned.
    """

    models: Int[Tensor, "tasks kept"]
    usable: Bool[Tensor, "tasks kept"]
    real: Bool[Tensor, "tasks shots"]
    predictions: Float[Tensor, "tasks outputs kept shots"]
    labels: Float[Tensor, "tasks outputs shots"]
    factor: Float[Tensor, "tasks outputs shots shots"]
    residual: Float[Tensor, "tasks outputs shots"]
    shares: Float[Tensor, "tasks outputs kept"]
    combination: Float[Tensor, "tasks outputs kept"]
    covariance: Float[Tensor, "tasks outputs"]
    kernel_scale: Float[Tensor, "tasks outputs"] | None
    noise: Float[Tensor, "tasks outputs"]
    around_prior: bool
    outputs: torch.Size
    dtype: torch.dtype

    @property
    def weights(self) -> Float[Tensor, "tasks kept *outputs"]:
        """w: how well each model explains the labels. Rows sum to 1; all are 0 around a prior mean."""
        return self.given_back(self.shares)

    @property
    def coefficients(self) -> Float[Tensor, "tasks kept *outputs"]:
        """c: what each model contributes. They sum to 1 (0 around a prior mean) and may be negative."""
        return self.given_back(self.combination)

    def given_back(
        self, values: Float[Tensor, "tasks outputs n"]
    ) -> Float[Tensor, "tasks n *outputs"]:
        """In the layout and precision of what was given."""
        tasks, _, n = values.shape
        return values.movedim(1, 2).reshape(tasks, n, *self.outputs).to(self.dtype)
