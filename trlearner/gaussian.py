"""A new task predicted by remembered models: the posterior under Gaussians around the best of them.

Every chosen model j is the centre of a Gaussian process with the covariance ``C`` of the chosen models, and
all of them are equally likely before the labels are seen:

    p(f) = 1/K · Σ_j N(f; f_j, C),    C(x, x') = h²/K · Σ_j r_j(x) r_j(x') + b · k(x, x'),    r_j = f_j − f̄

With labels ``y = f(X) + ε``, ``ε ~ N(0, σ²)``, the posterior is a mixture of Gaussians again. Bayes' rule
holds for each of them; all share C, so only their likelihoods differ. Its weights, means and variances are

    A = C(X, X) + σ² I = L Lᵀ,    v(x) = C(X, x)
    w = softmax_j(−½ ‖L⁻¹ (y − F_j)‖²)
    g_j(x) = f_j(x) + v(x)ᵀ A⁻¹ (y − F_j)
    V(x) = C(x, x) − v(x)ᵀ A⁻¹ v(x)

Its mean is a linear combination of the models: ``Σ_j r_j = 0``, so f̄ drops out.

    P(x) = Σ_j w_j g_j(x) = Σ_j c_j f_j(x) + b · k(x, X) A⁻¹ (y − wᵀF)
    c = w + h²/K · R A⁻¹ (y − wᵀF),    Σ c = 1

By the law of total variance, its variance is that of each Gaussian plus that of their means:

    Var(x) = V(x) + Σ_j w_j (g_j(x) − P(x))²

With a prior mean (the task's own model) there is one Gaussian around it instead of K: w = 0, Σ c = 0 and

    P(x) = prior(x) + Σ_j c_j f_j(x) + b · k(x, X) A⁻¹ (y − prior(X)),    Var(x) = V(x)

Without any models this is a Gaussian process on the residuals of the prior mean.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trlearner.checks import check_flag, check_whole
from trlearner.functional import take
from trlearner.gaussian_check import check_more, check_queries, check_support, scale
from trlearner.posterior import Posterior

CHUNK = 2**18
"""So many predictions are compared with labels at once."""

ROUNDING = 1e-12
"""The noise is at least this share of the models' variance, or rounding would exceed it."""


@torch.no_grad()
def best_models(
    predictions: Float[Tensor, "tasks models shots *outputs"],
    labels: Float[Tensor, "tasks shots *outputs"],
    neighbours: int,
    mask: Bool[Tensor, "tasks shots"] | None = None,
) -> Int[Tensor, "tasks kept"]:
    """The models with the least squared error on each task's support, over all outputs together.

    Models whose predictions of real shots are NaN or infinite come last.

    Args:
        predictions: What every model says of every task's support.
        labels: The truth.
        neighbours: How many to choose; all, if there are no more.
        mask: True where a shot is real.

    Returns:
        Their positions, the best first.

    Example:
        >>> best_models(torch.tensor([[[0.0], [5.0], [2.0]]]), torch.tensor([[1.5]]), 2)
        tensor([[2, 0]])
    """
    check_support(predictions, labels, mask)
    check_whole("neighbours", neighbours, least=0)
    kept = min(neighbours, predictions.shape[1])
    size = max(1, CHUNK // max(1, predictions[0].numel()))
    # Written into one tensor: small ones, kept between the large ones, would fragment memory.
    chosen = torch.empty(len(labels), kept, dtype=torch.long, device=labels.device)
    for first in range(0, len(labels), size):
        some = slice(first, first + size)
        errors = _errors(predictions[some], labels[some], None if mask is None else mask[some])
        chosen[some] = errors.topk(kept, dim=1, largest=False).indices
    return chosen


def gaussian_posterior(
    predictions: Float[Tensor, "tasks models shots *outputs"],
    labels: Float[Tensor, "tasks shots *outputs"],
    *,
    noise: float | Tensor,
    spread: float | Tensor = 0.5,
    neighbours: int = 80,
    mask: Bool[Tensor, "tasks shots"] | None = None,
    prior: Float[Tensor, "tasks shots *outputs"] | None = None,
    kernel: Float[Tensor, "tasks shots shots"] | None = None,
    kernel_scale: float | Tensor = 1.0,
) -> Posterior:
    """What the labels of each task say of remembered models.

    The formulas stand at the top of this module. Models are chosen for all outputs together; all else is done
    for each output apart. Everything is computed in double precision and is differentiable, apart from the
    choice of models. A task costs O(models · S + K S² + S³).

    A model whose predictions of real shots are NaN or infinite counts for nothing. Where fewer than
    `neighbours` others remain, it is listed with the coefficient 0. Where no model remains
    (`Posterior.usable` is all false), coefficients, prior mean and the models' part of the variance are 0:
    take the task's own model.

    Args:
        predictions: What every model says of every task's support.
        labels: The truth.
        noise: σ², the variance of the labels' noise.
        spread: h, how far a task may lie from the remembered ones, in units of their own spread. With 0 the
            coefficients are the softmax of -squared error / (2 σ²).
        neighbours: K, how many models to choose; all, if there are no more.
        mask: True where a shot is real.
        prior: What the task's own model says of the support, for one Gaussian around it.
        kernel: k(X, X) on the support, positive semidefinite.
        kernel_scale: b, the kernel's weight.

    `noise`, `spread` and `kernel_scale` are numbers, or tensors that broadcast to ``[tasks, *outputs]``; the
    values of tensors are not checked.

    Returns:
        The posterior; `posterior_mean` and `posterior_variance` evaluate it.

    Raises:
        TypeError: An argument is no tensor of floating-point numbers.
        ValueError: Shapes disagree, a number makes no sense, or the kernel is not positive semidefinite.

    Example:
        >>> predictions = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]])
        >>> labels = torch.tensor([[1.0, 1.0]])
        >>> posterior = gaussian_posterior(predictions, labels, noise=0.1, neighbours=2)
        >>> posterior.models
        tensor([[1, 0]])
        >>> posterior_mean(posterior, torch.tensor([[[2.0], [0.0]]]))
        tensor([[1.9897]])
    """
    check_support(predictions, labels, mask)
    check_more(predictions, labels, neighbours, prior, kernel)
    variance = scale("noise", noise, labels)
    b = None if kernel is None else scale("kernel_scale", kernel_scale, labels)
    h = scale("spread", spread, labels)
    models = best_models(predictions, labels, neighbours, mask)
    real = _real(labels, mask)
    F, y, usable = _support(take(predictions, models), labels, real)
    covariance = h.square() / usable.sum(1).clamp(min=1)[:, None]
    R = _centred(F, usable)
    A = covariance[..., None, None] * (R.mT @ R)
    if kernel is not None and b is not None:
        both = real[:, :, None] & real[:, None]
        A = A + b[..., None, None] * kernel.double().masked_fill(~both, 0)[:, None]
    L = _cholesky(A, variance)
    if prior is None:
        w = _explained(F, y, usable, L)
        gap = y - (w[:, :, None] @ F)[:, :, 0]
    else:
        w = F.new_zeros(F.shape[:3])
        gap = y - _vectors(prior).masked_fill(~real[:, None], 0)
    residual = torch.cholesky_solve(gap[..., None], L)[..., 0]
    c = w + covariance[..., None] * (R @ residual[..., None])[..., 0]
    both_types = torch.promote_types(predictions.dtype, labels.dtype)
    return Posterior(
        models=models,
        usable=usable,
        real=real,
        predictions=F,
        labels=y,
        factor=L,
        residual=residual,
        shares=w,
        combination=c,
        covariance=covariance,
        kernel_scale=b,
        noise=variance,
        around_prior=prior is not None,
        outputs=labels.shape[2:],
        dtype=torch.promote_types(torch.float32, both_types),
    )


def posterior_mean(
    posterior: Posterior,
    predictions: Float[Tensor, "tasks kept queries *outputs"],
    *,
    prior: Float[Tensor, "tasks queries *outputs"] | None = None,
    kernel: Float[Tensor, "tasks queries shots"] | None = None,
) -> Float[Tensor, "tasks queries *outputs"]:
    """P(x), the mean of what a new task says of its queries.

    A prediction that is not finite makes the answer so, unless its model is not `Posterior.usable`.

    Args:
        posterior: What the labels said.
        predictions: What the chosen models, `Posterior.models`, say of the queries.
        prior: The prior mean of the queries, where one of the support was given.
        kernel: k(x, X) between queries and support, where one of the support was given.

    Raises:
        ValueError: Shapes disagree, or `prior` or `kernel` is missing or one too many.
    """
    check_queries(posterior, predictions, {"prior": prior, "kernel": kernel})
    f = _answers(posterior, predictions)
    mean = (posterior.combination[:, :, None] @ f)[:, :, 0]
    if posterior.kernel_scale is not None and kernel is not None:
        k = _scaled_kernel(posterior, kernel)
        mean = mean + (k @ posterior.residual[..., None])[..., 0]
    if prior is not None:
        mean = mean + _vectors(prior)
    return posterior.given_back(mean)


def posterior_variance(
    posterior: Posterior,
    predictions: Float[Tensor, "tasks kept queries *outputs"],
    *,
    kernel: Float[Tensor, "tasks queries shots"] | None = None,
    kernel_itself: Float[Tensor, "tasks queries"] | None = None,
    of_labels: bool = False,
) -> Float[Tensor, "tasks queries *outputs"]:
    """Var(x), how uncertain a new task's answers are.

    Args:
        posterior: What the labels said.
        predictions: As of `posterior_mean`.
        kernel: As of `posterior_mean`.
        kernel_itself: k(x, x) of each query, where a kernel was given.
        of_labels: Of labels with their noise, Var(x) + σ², instead of the function's values.

    Raises:
        ValueError: Shapes disagree, or a kernel is missing or one too many.
    """
    check_flag("of_labels", of_labels)
    check_queries(posterior, predictions, {"kernel": kernel, "kernel_itself": kernel_itself})
    f = _answers(posterior, predictions)
    r, R = (_centred(t, posterior.usable) for t in (f, posterior.predictions))
    share = posterior.covariance[..., None]
    before, v = share * r.square().sum(2), share[..., None] * (r.mT @ R)
    if posterior.kernel_scale is not None and kernel is not None and kernel_itself is not None:
        b = posterior.kernel_scale
        before = before + b[..., None] * kernel_itself.double()[:, None]
        v = v + _scaled_kernel(posterior, kernel)
    explained = torch.linalg.solve_triangular(posterior.factor, v.mT, upper=False)
    variance = before - explained.square().sum(2)
    if not posterior.around_prior:
        gaps = _gaps(posterior.predictions, posterior.labels, posterior.usable)
        g = f + gaps @ torch.cholesky_solve(v.mT, posterior.factor)
        w = posterior.shares
        middle = w[:, :, None] @ g
        variance = variance + (w[:, :, None] @ (g - middle).square())[:, :, 0]
    variance = variance.clamp(min=0)  # rounding
    if of_labels:
        variance = variance + posterior.noise[..., None]
    return posterior.given_back(variance)


def _support(near: Tensor, labels: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F and y, zero where nothing counts, and which models are usable."""
    usable = _errors(near, labels, real).isfinite()
    y = _vectors(labels).masked_fill(~real[:, None], 0)
    counts = usable[:, :, None] & real[:, None]
    return _matrices(near).masked_fill(~counts[:, None], 0), y, usable


def _errors(predictions: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Summed squared errors ``[tasks, models]``; infinite where they are no number."""
    errors = (predictions.double() - labels[:, None].double()).square()
    errors = errors.unsqueeze(-1).flatten(3).sum(3)
    if mask is not None:
        errors = errors.masked_fill(~mask[:, None], 0)
    return errors.sum(2).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _centred(F: Tensor, usable: Tensor) -> Tensor:
    """Usable models' distance to their mean ``[tasks, outputs, kept, samples]``; 0 for the others."""
    count = usable.sum(1).clamp(min=1)[:, None, None, None]
    mean = F.sum(2, keepdim=True) / count
    return (F - mean).masked_fill(~usable[:, None, :, None], 0)


def _gaps(F: Tensor, y: Tensor, usable: Tensor) -> Tensor:
    """What usable models miss, y − F_j ``[tasks, outputs, kept, shots]``; 0 for the others."""
    return (y[:, :, None] - F).masked_fill(~usable[:, None, :, None], 0)


def _cholesky(covariance: Tensor, noise: Tensor) -> Tensor:
    """L ``[tasks, outputs, shots, shots]``.

    Raises:
        ValueError: There is none, seen on the CPU only; elsewhere the answers are NaN.
    """
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    level = noise.maximum(ROUNDING * diagonal.amax(-1))[..., None].expand_as(diagonal)
    factor, wrong = torch.linalg.cholesky_ex(covariance + torch.diag_embed(level))
    if wrong.device.type == "cpu" and wrong.any():
        tasks = wrong.any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"kernel must be finite and positive semidefinite, but with noise added it is not for tasks "
            f"{tasks[:10]}. Check that k(x, x') is a covariance, or raise noise."
        )
    return factor.masked_fill((wrong != 0)[..., None, None], torch.nan)


def _explained(F: Tensor, y: Tensor, usable: Tensor, L: Tensor) -> Tensor:
    """The weights w ``[tasks, outputs, kept]``; all 0 where no model is usable."""
    white = torch.linalg.solve_triangular(L, _gaps(F, y, usable).mT, upper=False)
    some = usable.any(1)[:, None, None]
    logs = (-0.5 * white.square().sum(2)).masked_fill(some & ~usable[:, None], -torch.inf)
    return logs.softmax(2).masked_fill(~some, 0)


def _answers(posterior: Posterior, predictions: Tensor) -> Tensor:
    """What the chosen models say of queries ``[tasks, outputs, kept, queries]``; 0 from unusable ones."""
    return _matrices(predictions).masked_fill(~posterior.usable[:, None, :, None], 0)


def _scaled_kernel(posterior: Posterior, kernel: Tensor) -> Tensor:
    """The kernel times its scale ``[tasks, outputs, queries, shots]``; 0 for padding."""
    assert posterior.kernel_scale is not None
    k = kernel.double().masked_fill(~posterior.real[:, None], 0)
    return posterior.kernel_scale[..., None, None] * k[:, None]


def _vectors(values: Tensor) -> Tensor:
    """``[tasks, samples, *outputs]`` as ``[tasks, outputs, samples]`` in double precision."""
    return values.unsqueeze(-1).flatten(2).movedim(-1, 1).double()


def _matrices(values: Tensor) -> Tensor:
    """``[tasks, models, samples, *outputs]`` as ``[tasks, outputs, models, samples]``, as `_vectors`."""
    return values.unsqueeze(-1).flatten(3).movedim(-1, 1).double()


def _real(labels: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return mask
    return torch.ones(labels.shape[:2], dtype=torch.bool, device=labels.device)
