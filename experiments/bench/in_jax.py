"""The same meta-step by hand in JAX, as one jitted function, Adam included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from trlearner.experiments.bench.contender import Contender, Unavailable
from trlearner.experiments.bench.workload import OUTER_RATE, Workload
from trlearner.experiments.data.models.resnet12 import Block

Array = Any
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam, as in torch."""


def jax_jit(workload: Workload) -> Contender:
    """`jax.jit` of inner loops, outer gradient and Adam; parameters as torch has them.

    Tasks go through `vmap`; where the network has convolutions, one by one, which XLA runs ten times faster
    on a CPU. Images are channels-last, pooling is a reshape and a maximum: faster than `reduce_window`.
    """
    import jax
    import jax.numpy as jnp

    net, forward = workload.net(), network(workload)
    loss = {mse_loss: _squared_error, cross_entropy: _cross_entropy}[workload.loss]
    together = not any(isinstance(layer, nn.Conv2d) for layer in net.modules())

    def fit(params: list[Array], x: Array, y: Array) -> Array:
        return loss(forward(params, x), y)

    def task(params: list[Array], xs: Array, ys: Array, xq: Array, yq: Array) -> Array:
        for _ in range(workload.steps):
            grads = jax.grad(fit)(params, xs, ys)
            params = [p - workload.rate * g for p, g in zip(params, grads, strict=True)]
        return fit(params, xq, yq)

    def meta(params: list[Array], *data: Array) -> Array:
        if together:
            return jax.vmap(task, in_axes=(None, 0, 0, 0, 0))(params, *data).mean()
        return sum(task(params, *one) for one in zip(*data, strict=True)) / len(data[0])

    @jax.jit
    def update(params: list[Array], state: tuple[Array, ...], *data: Array) -> tuple[Any, Any]:
        return adam(params, jax.grad(meta)(params, *data), *state)

    wide = workload.batch.query.x.dtype == torch.float64
    with jax.enable_x64(wide):
        params = [jnp.asarray(p.detach().numpy()) for p in net.parameters()]
        data = [jnp.asarray(_channels_last(t).numpy()) for t in workload.tensors()]
        zeros = [jnp.zeros_like(p) for p in params]
        state = zeros, zeros, jnp.zeros((), zeros[0].dtype)
    made = _contender(update, params, state, data)
    return Contender(jax.enable_x64(True)(made.step), made.gradient) if wide else made


def _contender(update: Any, params: Any, state: Any, data: list[Array]) -> Contender:
    import jax

    first: list[Array] = []

    def step() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(update(params, state, *data))
        first[:] = first or state[0]

    def gradient() -> list[torch.Tensor]:
        # After one step from zero, Adam's first moment is (1 - beta) times the gradient.
        return [torch.tensor(m.__array__()) / (1 - BETAS[0]) for m in first]

    return Contender(step, gradient)


def adam(
    params: list[Array], grads: list[Array], m: list[Array], v: list[Array], count: Array
) -> tuple[list[Array], tuple[list[Array], list[Array], Array]]:
    """One step of Adam: parameters, and the state to go on with."""
    (b1, b2), count = BETAS, count + 1
    m = [b1 * a + (1 - b1) * g for a, g in zip(m, grads, strict=True)]
    v = [b2 * a + (1 - b2) * g * g for a, g in zip(v, grads, strict=True)]
    scale = OUTER_RATE / (1 - b1**count)
    moved = [
        p - scale * a / ((b / (1 - b2**count)) ** 0.5 + EPS)
        for p, a, b in zip(params, m, v, strict=True)
    ]
    return moved, (m, v, count)


def network(workload: Workload) -> Callable[[list[Array], Array], Array]:
    """The network as a function of its parameters and inputs.

    Raises:
        Unavailable: It has a layer that is not written down here.
    """
    net = workload.net()
    for layer in net:
        if type(layer) not in LAYERS:
            raise Unavailable(f"{type(layer).__name__} is not in LAYERS of {__file__}; add it.")
    return lambda params, x: _sequence(net, iter(params), x)


def _sequence(layers: nn.Module, params: Iterator[Array], x: Array) -> Array:
    for layer in layers.children():
        x = LAYERS[type(layer)](layer, params, x)
    return x


def _block(block: nn.Module, params: Iterator[Array], x: Array) -> Array:
    """Parameters come in the order in which torch lists the parts."""
    assert isinstance(block, Block)
    around = _sequence(block.body, params, x), _sequence(block.shortcut, params, x)
    return _sequence(block.out, params, around[0] + around[1])


def _linear(_: nn.Module, params: Iterator[Array], x: Array) -> Array:
    return x @ next(params).T + next(params)


def _relu(_: nn.Module, __: Iterator[Array], x: Array) -> Array:
    import jax

    return jax.nn.relu(x)


def _leaky_relu(layer: nn.Module, _: Iterator[Array], x: Array) -> Array:
    import jax

    assert isinstance(layer, nn.LeakyReLU)
    return jax.nn.leaky_relu(x, layer.negative_slope)


def _conv(layer: nn.Module, params: Iterator[Array], x: Array) -> Array:
    import jax

    assert isinstance(layer, nn.Conv2d)
    pads = [(int(p), int(p)) for p in layer.padding]
    axes = ("NHWC", "OIHW", "NHWC")
    found = jax.lax.conv_general_dilated(
        x, next(params), layer.stride, pads, dimension_numbers=axes
    )
    return found if layer.bias is None else found + next(params)


def _batch_norm(layer: nn.Module, params: Iterator[Array], x: Array) -> Array:
    import jax

    assert isinstance(layer, nn.BatchNorm2d) and not layer.track_running_stats
    centred = x - x.mean((0, 1, 2))
    variance = (centred**2).mean((0, 1, 2))
    return centred * jax.lax.rsqrt(variance + layer.eps) * next(params) + next(params)


def _max_pool(layer: nn.Module, _: Iterator[Array], x: Array) -> Array:
    assert isinstance(layer, nn.MaxPool2d) and layer.kernel_size == layer.stride == 2
    samples, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(samples, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _average(layer: nn.Module, _: Iterator[Array], x: Array) -> Array:
    assert isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1
    return x.mean((1, 2), keepdims=True)


def _flatten(_: nn.Module, __: Iterator[Array], x: Array) -> Array:
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # in torch's order


LAYERS: dict[type[nn.Module], Callable[[nn.Module, Iterator[Array], Array], Array]] = {
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _average,
    nn.Flatten: _flatten,
    Block: _block,
}


def _squared_error(predictions: Array, y: Array) -> Array:
    return ((predictions - y) ** 2).mean()


def _cross_entropy(logits: Array, y: Array) -> Array:
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def _channels_last(t: torch.Tensor) -> torch.Tensor:
    """``[tasks, samples, channels, height, width]`` as JAX is fastest with on a CPU."""
    return t.permute(0, 1, 3, 4, 2) if t.ndim == 5 else t
