"""Layers of torch.nn, one after the other: engines agree with a plain loop, in both orders."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import trlearner as tr

TIGHT = {"rtol": 0.0, "atol": 1e-9}
TASKS, CHANNELS = 2, 4
SIZES = {1: (6,), 2: (6, 5), 3: (4, 4, 4)}
Make = Callable[[], nn.Module]


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x), output_size=x.shape)


def of(name: str, *args: object, **options: object) -> Callable[[int], nn.Module]:
    """A layer that exists for one, two and three dimensions."""
    return lambda d: getattr(nn, name.replace("#", f"{d}d"))(*args, **options)


NORMS = {
    "BatchNorm": of("BatchNorm#", CHANNELS),
    "BatchNorm without parameters": of("BatchNorm#", CHANNELS, affine=False),
    "BatchNorm without statistics": of("BatchNorm#", CHANNELS, track_running_stats=False),
    "InstanceNorm": of("InstanceNorm#", CHANNELS),
    "InstanceNorm with parameters": of("InstanceNorm#", CHANNELS, affine=True),
    "InstanceNorm with statistics": of("InstanceNorm#", CHANNELS, track_running_stats=True),
    "InstanceNorm with both": of("InstanceNorm#", CHANNELS, affine=True, track_running_stats=True),
    "GroupNorm": of("GroupNorm", 2, CHANNELS),
    "GroupNorm of single channels": of("GroupNorm", CHANNELS, CHANNELS),
    "LocalResponseNorm": of("LocalResponseNorm", 2),
    "LayerNorm": lambda d: nn.LayerNorm([CHANNELS, *SIZES[d]]),
    "LayerNorm of rows": lambda d: nn.LayerNorm(SIZES[d][-1]),
    "RMSNorm": lambda d: nn.RMSNorm([CHANNELS, *SIZES[d]]),
}
POOLS = {
    "MaxPool": of("MaxPool#", 2),
    "MaxPool that overlaps": of("MaxPool#", 3, stride=1, padding=1),
    "MaxPool dilated": of("MaxPool#", 2, stride=1, dilation=2),
    "MaxPool ceiled": of("MaxPool#", 3, stride=2, ceil_mode=True),
    "AvgPool": of("AvgPool#", 2),
    "AvgPool padded": of("AvgPool#", 3, stride=2, padding=1, count_include_pad=False),
    "AdaptiveAvgPool": of("AdaptiveAvgPool#", 3),
    "AdaptiveAvgPool to one": of("AdaptiveAvgPool#", 1),
    "AdaptiveMaxPool": of("AdaptiveMaxPool#", 3),
    "LPPool": of("LPPool#", 2, 2),
}
CONVOLUTIONS = {
    "Conv": of("Conv#", CHANNELS, 2, 3),
    "Conv of one pixel": of("Conv#", CHANNELS, 2, 1),
    "Conv with strides": of("Conv#", CHANNELS, 2, 3, stride=2, padding=1),
    "Conv dilated": of("Conv#", CHANNELS, 2, 2, dilation=2),
    "Conv grouped": of("Conv#", CHANNELS, CHANNELS, 3, groups=2),
    "Conv depthwise": of("Conv#", CHANNELS, 2 * CHANNELS, 3, groups=CHANNELS, bias=False),
    "Conv reflecting": of("Conv#", CHANNELS, 2, 3, padding=1, padding_mode="reflect"),
    "Conv circular": of("Conv#", CHANNELS, 2, 3, padding=1, padding_mode="circular"),
    "ConvTranspose": of("ConvTranspose#", CHANNELS, 2, 3, stride=2, output_padding=1),
    "ConvTranspose grouped": of("ConvTranspose#", CHANNELS, CHANNELS, 3, groups=2, dilation=2),
    "Upsample": of("Upsample", scale_factor=2),
    "ReplicationPad": of("ReplicationPad#", 1),
}
IMAGES: dict[str, Make] = {
    **{
        name: getattr(nn, name)
        for name in (
            *("ELU", "Hardtanh", "Hardswish", "LeakyReLU", "LogSigmoid", "PReLU", "ReLU", "ReLU6"),
            *("SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish", "Softplus", "Softshrink"),
            *("Softsign", "Tanh", "Tanhshrink", "Softmax2d"),
        )
    },
    "GLU": lambda: nn.GLU(1),
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "MaxUnpool2d": Unpooled,
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "antialiased": lambda: Call(
        lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True)
    ),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "Fold": lambda: nn.Sequential(nn.Unfold(2), nn.Fold((6, 5), 2)),
    "grid_sample": lambda: Call(
        lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)
    ),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(CHANNELS, 2, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley"),
}
LAYERS: dict[str, tuple[int, Make]] = {name: (2, make) for name, make in IMAGES.items()} | {
    f"{name}, {d}d": (d, lambda make=make, d=d: make(d))
    for group in (NORMS, POOLS, CONVOLUTIONS)
    for name, make in group.items()
    for d in SIZES
}


def net(dimensions: int, make: Make, samples: int) -> tuple[nn.Module, Tensor]:
    """A layer behind a convolution, with statistics; and inputs of support and query."""
    torch.manual_seed(0)
    first = getattr(nn, f"Conv{dimensions}d")(2, CHANNELS, 3, padding=1)
    model = nn.Sequential(first, make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1)).double()
    x = torch.randn(2, TASKS, samples, 2, *SIZES[dimensions], dtype=torch.float64)
    with torch.no_grad():
        model(x.flatten(0, 2))
    return model, x


def step(learner: tr.MAML, engine: str, x: Tensor) -> list[Tensor]:
    """Predictions and meta-gradients."""
    learner.engine = engine
    samples = x.shape[2]
    y = torch.linspace(-1, 1, TASKS * samples, dtype=torch.float64).reshape(TASKS, samples, 1)
    answers = learner.adapt((x[0], y), F.mse_loss)(x[1])
    gradients = torch.autograd.grad(F.mse_loss(answers, y), [*learner.model.parameters()])
    return [answers.detach(), *gradients]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of batching rules
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "name",
    [n if d == 2 else pytest.param(n, marks=pytest.mark.slow) for n, (d, _) in LAYERS.items()],
)
def test_engines_agree_with_loop(name: str, samples: int):
    model, x = net(*LAYERS[name], samples)
    learner = tr.MAML(model, lr=0.1, steps=1)
    for training in (True, False) if "Norm" in name else (True,):
        model.train(training)
        for first_order in (False, True):
            learner.first_order = first_order
            wanted = step(learner, "loop", x)
            assert all(t.isfinite().all() for t in wanted)
            for engine in ("batched", "channels_last"):
                found = step(learner, engine, x)
                for one, other in zip(found, wanted, strict=True):
                    assert_close(one, other, **TIGHT)


SEQUENCES: dict[str, Make] = {
    "LSTM": lambda: nn.LSTM(3, 2, batch_first=True),
    "GRU": lambda: nn.GRU(3, 2, bidirectional=True, batch_first=True),
    "MultiheadAttention": lambda: nn.MultiheadAttention(3, 1, batch_first=True),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("engine", ["higher", "batched", "auto"])
def test_sequence_layers_agree_or_are_refused(name: str, engine: str):
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = SEQUENCES[name](), nn.LazyLinear(1)

        def forward(self, x: Tensor) -> Tensor:
            query = isinstance(self.layer, nn.MultiheadAttention)
            return self.last((self.layer(x, x, x) if query else self.layer(x))[0].flatten(1))

    def run(engine: str) -> list[Tensor]:
        torch.manual_seed(0)
        model = Sequence().double()
        x = torch.randn(2, TASKS, 3, 4, 3, dtype=torch.float64)
        model(x[0, 0])
        y = torch.randn(TASKS, 3, 1, dtype=torch.float64)
        answers = tr.MAML(model, lr=0.1, steps=1, engine=engine).adapt((x[0], y), F.mse_loss)(x[1])
        return list(torch.autograd.grad(F.mse_loss(answers, y), [*model.parameters()]))

    if name != "MultiheadAttention" and engine == "batched":
        with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::"):
            run(engine)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "engine='auto' runs this learner with 'loop'")
        found = run(engine)
    for one, other in zip(found, run("loop"), strict=True):
        assert_close(one, other, **TIGHT)
