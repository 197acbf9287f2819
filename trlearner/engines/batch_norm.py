"""BatchNorm with batch statistics whose second derivative costs about as much as its first.

Autograd takes some forty elementwise operations for the derivative of BatchNorm's backward pass and leaves
results in another memory format. By hand it is two more backward passes and four elementwise operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trlearner.engines.instead import Instead

_forward = torch.ops.aten.native_batch_norm
_backward = torch.ops.aten.native_batch_norm_backward


def cheap_norms() -> Instead:
    """Inside of it, `torch.nn.functional.batch_norm` is `batch_norm` wherever that computes the same.

    `torch.nn.functional.instance_norm` is computed by functions that are right in every memory format.

    Example:
        >>> x = torch.randn(4, 3, 5, 5)
        >>> layer = torch.nn.BatchNorm2d(3)
        >>> with cheap_norms():
        ...     torch.equal(layer(x), torch.nn.functional.batch_norm(x, None, None, training=True))
        True
    """
    return Instead({F.batch_norm: _batch_norm, F.instance_norm: _instance_norm})


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of ``x [samples, channels, ...]`` normalized with its own statistics, on a CPU.

    y = weight * h + bias,  h = (x - mean(x)) * r,  r = (var(x) + eps) ** -0.5

    A third derivative is left to autograd.
    """
    return _Norm.apply(x, weight, bias, eps)


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    function = _of if _suits(*args, **kwargs) else F.batch_norm
    return function(*args, **kwargs)


def _of(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return batch_norm(x, weight, bias, eps)


def _instance_norm(
    x: Tensor,
    *,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    if x.shape[2:].numel() == 1:  # which torch refuses
        return F.instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    # torch's own reads a channels-last gradient of a single sample as if it were contiguous.
    if use_input_stats:
        return F.group_norm(x, x.shape[1], weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


def _suits(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> bool:
    return (
        training
        and mean is None
        and weight is not None
        and bias is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == bias.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > x.shape[1]  # else there is nothing to normalize, which torch refuses
    )


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, r = _forward(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormBackward.apply(*upstream, *ctx.saved_tensors, ctx.eps), None


class _NormBackward(torch.autograd.Function):
    """The gradient of `_Norm`; that of x is weight * r * P(g), with P(g) = g - mean(g) - h * mean(g * h)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gx, sum_gh, sum_g = _backward(
            g, x, weight, None, None, mean, r, True, eps, [True, True, True]
        )
        ctx.save_for_backward(g, x, weight, mean, r, sum_gh, sum_g)
        ctx.eps = eps
        return gx, sum_gh, sum_g

    @staticmethod
    def backward(ctx: Any, u: Tensor, u_weight: Tensor, u_bias: Tensor) -> tuple[Any, ...]:
        g, x, weight, mean, r, sum_gh, sum_g = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_by_autograd(g, x, weight, (u, u_weight, u_bias), ctx.eps), None, None, None
        n = x.numel() // x.shape[1]
        # The backward pass of a weight of 1: r * P(u).
        rp, sum_uh, sum_u = _backward(
            u, x, torch.ones_like(r), None, None, mean, r, True, ctx.eps, [True, True, True]
        )
        agreement = (rp * g).sum([0, *range(2, x.ndim)])  # r <P(u), g>

        # <u, gx> + <u_weight, sum_gh> has the derivative of_g * g + of_u * u by h; r, which depends on x as
        # well, adds a multiple of h. The rest is a matter of channels.
        of_g, of_u = u_weight - weight * r * sum_uh / n, -weight * r * sum_gh / n
        mean_d = (of_g * sum_g + of_u * sum_u) / n
        mean_dh = (of_g * sum_gh + of_u * sum_uh) / n
        of_x = -r * r * (mean_dh + weight * agreement / n)
        gx = torch.addcmul(_spread(-r * mean_d - of_x * mean, x), x, _spread(of_x, x))
        gx = gx.addcmul_(g, _spread(of_g * r, x)).addcmul_(u, _spread(of_u * r, x))
        slope = u_weight * r
        gg = torch.addcmul(_spread(u_bias - slope * mean, x), x, _spread(slope, x))
        gg = gg.addcmul_(rp, _spread(weight, x))
        return gg, gx, agreement, None, None, None


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


def _by_autograd(
    g: Tensor, x: Tensor, weight: Tensor, upstream: tuple[Tensor, ...], eps: float
) -> tuple[Tensor, ...]:
    """What `_NormBackward.backward` returns, with a graph."""
    # Aliases, for g may itself depend on x, which is not what is asked here.
    g, x, weight = (
        t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (g, x, weight)
    )
    bias = torch.zeros_like(weight, requires_grad=True)
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    first = torch.autograd.grad(y, (x, weight, bias), g, create_graph=True)
    return torch.autograd.grad(first, (g, x, weight), upstream, create_graph=True)
