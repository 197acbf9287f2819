"""Bayesian linear regression as a head: solved, not stepped (ALPaCA, R2-D2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.checks import check_whole
from trlearner.base.types import Fast, State
from trlearner.engines.task_learner import InnerLoop
from trlearner.learners.protocol import Learner
from trlearner.tasks.model_call import Call
from trlearner.tasks.nested import Data, flat

NOISE = 0.1
"""The variance of the targets' noise, in units of the weights' prior variance, where learning starts."""

SCALE = 10.0
"""What class scores are multiplied by where learning starts: they lie between 0 and 1, logits should not."""

ROUNDING = 1e-12
"""The noise is at least this share of the predictions' variance, or rounding would exceed it."""


class BayesHead(Learner):
    """Learns features; adapts by solving for the weights of a linear head, in closed form.

    The weights of a task have the prior ``N(W0, C Cᵀ)``, targets the noise variance σ². W0, C and σ² are
    learned, as the features are. With a task's features Φ, a 1 appended to each, the head is the
    posterior mean

        W = W0 + C Zᵀ (Z Zᵀ + σ² I)⁻¹ (Y − Φ W0),    Z = Φ C

    (ALPaCA, Harrison et al. 2018, arXiv 1807.08912; deviation: C is a full matrix, not a Cholesky factor, and
    the loss is yours, not the likelihood).

    With ``ways``, the head is ridge regression to one-hot labels with W0 = 0. Its scores times a learned
    scale are the logits (R2-D2, Bertinetto et al. 2019, arXiv 1805.08136; deviation: no bias, which would be
    the same for all classes and change no probability).

    There are no inner steps, so ``steps`` of `adapt` changes nothing, and ``loss_fn`` only judges queries.

    Args:
        extractor: Maps inputs ``[samples, ...]`` to features, flattened to ``[samples, dim]``.
        dim: The number of features.
        outputs: The number of targets of a sample, which are ``[samples, outputs]``.
        ways: The number of classes, for integer targets ``[samples]``; ``None`` for regression.
        engine: ``"auto"``, ``"tune"``, ``"higher"``, ``"loop"``, ``"channels_last"``, ``"batched"`` or
            ``"compiled"``.
        call: As in `MAML`.
        output: As in `MAML`.

    Example:
        >>> import trlearner as tr
        >>> learner = tr.BayesHead(nn.Sequential(nn.Linear(1, 40), nn.ReLU()), dim=40)
        >>> x = torch.rand(4, 10, 1)
        >>> learner.adapt((x, 3 * x), nn.functional.mse_loss)(x).shape
        torch.Size([4, 10, 1])
    """

    def __init__(
        self,
        extractor: nn.Module,
        dim: int = 64,
        outputs: int = 1,
        ways: int | None = None,
        engine: str = "auto",
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(extractor, engine=engine, call=call, output=output)
        check_whole("dim", dim)
        check_whole("outputs", outputs)
        check_whole("ways", ways, least=2, optional=True)
        if ways is not None and outputs != 1:
            raise ValueError(
                f"outputs must be left at 1 where ways={ways} says how many classes there are, got {outputs}."
            )
        self.dim, self.outputs, self.ways = dim, outputs, ways
        self.prior_factor = nn.Parameter(torch.eye(dim + 1))
        self.log_noise = nn.Parameter(torch.tensor(math.log(NOISE)))
        if ways is None:
            self.prior_mean = nn.Parameter(torch.zeros(dim + 1, outputs))
        else:
            self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def embed(self, state: State, x: Data) -> Any:
        """The features, which no task changes, and a 1: ``[samples, dim + 1]``."""
        features = flat(self.run(self.model_state(state), x), 1)
        if features.shape[1] != self.dim:
            raise ValueError(
                f"extractor must return {self.dim} features for each sample, as dim={self.dim} says, got "
                f"{features.shape[1]}. Pass BayesHead(extractor, dim={features.shape[1]})."
            )
        return torch.cat([features, torch.ones_like(features[:, :1])], 1)

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """The posterior mean of the task's weights ``[dim + 1, outputs or classes]``."""
        factor, noise, ways = state["prior_factor"], state["log_noise"].exp(), self.ways
        if loop.ways not in (None, ways):
            raise ValueError(
                f"BayesHead(ways={ways}) was given tasks of ways={loop.ways} classes. Pass BayesHead(..., "
                f"ways={loop.ways})."
            )

        def solve(features: Tensor, targets: Tensor, mask: Tensor | None) -> Fast:
            self._check(targets)
            if ways is None:
                prior = state["prior_mean"]
            else:
                targets = targets[:, None] == torch.arange(ways, device=targets.device)
                prior = factor.new_zeros(len(factor), ways)
            return {"head": posterior_weights(features, targets, prior, factor, noise, mask)}

        if loop.mask is None:
            return loop.lift(lambda h, y: solve(h, y, None))(loop.features, loop.targets)
        return loop.lift(solve)(loop.features, loop.targets, loop.mask)

    def _check(self, targets: Any) -> None:
        """Refuse what the head cannot solve for."""
        numbers, axes, outputs = targets.is_floating_point(), targets.shape[1:], self.outputs
        if self.ways is None and not (numbers and axes == (outputs,)):
            raise ValueError(
                f"BayesHead(outputs={outputs}) needs numbers [samples, {outputs}] for a task's targets, got "
                f"{targets.dtype} {list(targets.shape)}. Pass outputs=, append an axis with y[..., None], "
                "or pass ways= for class labels."
            )
        if self.ways is not None and (numbers or axes):
            raise ValueError(
                f"BayesHead(ways={self.ways}) needs integer labels [samples] for a task's targets, got "
                f"{targets.dtype} {list(targets.shape)}. Leave ways out for regression."
            )

    def predict(self, state: State, fast: Fast, features: Any) -> Any:
        """Predictions ``[samples, outputs]``, or logits ``[samples, classes]``."""
        scores = features @ fast["head"].to(features.dtype)
        return scores if self.ways is None else scores * state["log_scale"].exp()


def posterior_weights(
    features: Tensor,
    targets: Tensor,
    prior: Tensor,
    factor: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The posterior mean of a linear regression's weights; see `BayesHead`.

    ``W0 + C Zᵀ (Z Zᵀ + σ² I)⁻¹ (Y − Φ W0),  Z = Φ C``. It is solved in double precision, in as many
    dimensions as there are samples or features, whichever are fewer:
    ``Zᵀ (Z Zᵀ + σ² I)⁻¹ = (Zᵀ Z + σ² I)⁻¹ Zᵀ``.

    Args:
        features: Φ ``[samples, features]``.
        targets: Y ``[samples, outputs]``.
        prior: W0 ``[features, outputs]``.
        factor: C ``[features, features]``, where C Cᵀ is the prior covariance of each output's weights.
        noise: σ², a scalar.
        mask: ``[samples]``, true where a sample is real.

    Returns:
        ``[features, outputs]``, in the precision of features or prior, whichever is finer.

    Example:
        >>> one = torch.ones(1, 1)
        >>> posterior_weights(one, 4 * one, 0 * one, one, torch.tensor(1.0))  # halfway
        tensor([[2.]])
    """
    phi, w0, root = features.double(), prior.double(), factor.double()
    gap = targets.double() - phi @ w0
    if mask is not None:
        phi = torch.where(mask[:, None], phi, 0.0)
        gap = torch.where(mask[:, None], gap, 0.0)
    z = phi @ root
    if z.shape[0] <= z.shape[1]:
        change = z.T @ _solved(z @ z.T, noise, gap)
    else:
        change = _solved(z.T @ z, noise, z.T @ gap)
    return (w0 + root @ change).to(torch.promote_types(features.dtype, prior.dtype))


def _solved(a: Tensor, noise: Tensor, right: Tensor) -> Tensor:
    """``(A + noise I)⁻¹ right``."""
    level = noise.double().maximum(ROUNDING * a.diagonal().amax())
    # The check of `cholesky` would wait for a GPU; what is not finite comes out as NaN all the same.
    factor = torch.linalg.cholesky_ex(a + level * torch.eye(len(a), dtype=a.dtype, device=a.device))
    return torch.cholesky_solve(right, factor.L)
