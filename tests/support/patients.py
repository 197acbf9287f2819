"""Models that the doctor examines, and what a real step says of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import trlearner as tr

TASKS, SAMPLES, WIDTH = 3, 6, 4
TOGETHER = ("batched", "compiled")


def batch_of(outputs: int = 1, mask: Tensor | None = None) -> tr.TaskBatch:
    def part() -> tr.Samples:
        return tr.Samples(
            torch.randn(TASKS, SAMPLES, 2), torch.randn(TASKS, SAMPLES, outputs), mask
        )

    return tr.TaskBatch(part(), part())


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, WIDTH), *middle, nn.Linear(WIDTH, 1))


def step(model: nn.Module, engine: str, **options: object) -> Exception | None:
    """What a real second-order step says on its way through an engine, if anything."""
    learner = tr.MAML(copy.deepcopy(model), lr=0.1, steps=1, engine=engine, **options)
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2), loss_fn=F.mse_loss, lam=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reg(learner, batch_of()).loss.backward()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return error
    return None


class Own(nn.Module):
    """A layer whose forward is a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.number = torch.tensor(3.0)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x @ self.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (2, 2))
        return self.inner(query=h, key=h, value=h, need_weights=False)[0].flatten(-2)


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = cell(2, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unflatten(-1, (2, 2)))[0].flatten(-2)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].exp()


def overwriting(layer: nn.Module, x: Tensor) -> Tensor:
    y = x.exp()
    return y.sin() + y.add_(1).square()


def clamping(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.clamp_(-1, 1)
    return x * layer.weight.sum()


def averaging(layer: nn.Module, x: Tensor) -> Tensor:
    layer.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return x - layer.mean


def assigning(layer: nn.Module, x: Tensor) -> Tensor:
    layer.mean = 0.9 * layer.mean + 0.1 * x.detach().mean(0)
    return x - layer.mean


def checkpointing(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(
        lambda h: (h @ layer.weight).tanh(), x, use_reentrant=False
    )


def spectral(frozen: bool = False) -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
    return layer.eval() if frozen else layer


def own(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Own(function)


def attending(layer: nn.Module, x: Tensor) -> Tensor:
    h = x[:, None, :, None]
    return F.scaled_dot_product_attention(h, h, h).flatten(1)


def math_kernel() -> object:
    return sdpa_kernel(SDPBackend.MATH)
