"""Small random models, described by the names of their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WIDTH = 4
"""Features or channels between layers: any layer of a family may follow any other."""
LENGTH = 6
VOCABULARY = 7


@dataclass(frozen=True)
class Model:
    """What `build_model` makes a model of."""

    family: str
    first: str
    layers: tuple[str, ...]
    end: str
    head: str
    extras: tuple[str, ...]
    training: bool


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Raised(nn.Module):
    """Keeps what a ReLU left at 0 away from 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Gain(nn.Module):
    """A parameter of no axes, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.8))
        self.unused = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class Shift(nn.Module):
    """Two buffers, one of them saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(0.2))
        self.register_buffer("scale", torch.tensor([1.3]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class Tied(nn.Module):
    """One weight under two names, with a bias for each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.one(x)))


class Centred(nn.Module):
    """A layer of the user's own that couples samples."""

    couples_samples = True

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True)


class Recurrent(nn.Module):
    """A recurrent layer on ``[samples, length, features]``, whichever axis it wants first."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool = True, **options: int) -> None:
        super().__init__()
        self.layer = kind(WIDTH, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.batch_first:
            return self.layer(x)[0]
        return self.layer(x.transpose(0, 1))[0].transpose(0, 1)


class Cell(nn.Module):
    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state, found = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)


class Attention(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.parts = nn.Linear(WIDTH, 3 * WIDTH)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


Layers = dict[str, Callable[[], nn.Module]]

ANYWHERE: Layers = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "softsign": nn.Softsign,
    "hardswish": nn.Hardswish,
    "dropout of 0": lambda: nn.Dropout(0.0),
    "gain": Gain,
    "shift": Shift,
    "centred": Centred,
}
BY_FEATURE: Layers = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "residual": lambda: Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())),
    "layer_norm": lambda: nn.LayerNorm(WIDTH),
    "rms_norm": lambda: nn.RMSNorm(WIDTH),
    "tied": Tied,
    "weight_norm": lambda: weight_norm(nn.Linear(WIDTH, WIDTH)),
    "softmax": lambda: nn.Softmax(-1),
}


def _twice() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(layer, nn.Tanh(), layer)


def _by_channel(n: int) -> Layers:
    """Convolutions, norms and pools over `n` axes."""

    def of(name: str) -> type[nn.Module]:
        return getattr(nn, f"{name}{n}d")

    def conv(**options: object) -> Callable[[], nn.Module]:
        return lambda: of("Conv")(WIDTH, WIDTH, 3, **{"padding": 1, **options})

    return {
        "conv": conv(),
        "conv in groups": conv(groups=2),
        "conv of each channel": conv(groups=WIDTH, bias=False),
        "conv dilated": conv(dilation=2, padding=2),
        "conv circular": conv(padding_mode="circular"),
        "conv strided": conv(stride=2),
        "conv transposed": lambda: of("ConvTranspose")(WIDTH, WIDTH, 3, padding=1),
        "residual": lambda: Residual(nn.Sequential(conv()(), nn.Tanh())),
        "batch_norm": lambda: of("BatchNorm")(WIDTH),
        "batch_norm untracked": lambda: of("BatchNorm")(WIDTH, track_running_stats=False),
        "group_norm": lambda: nn.GroupNorm(2, WIDTH),
        "instance_norm": lambda: of("InstanceNorm")(WIDTH, affine=True),
        "instance_norm tracked": lambda: of("InstanceNorm")(WIDTH, track_running_stats=True),
        "avg_pool": lambda: of("AvgPool")(2, stride=1),
        "max_pool": lambda: of("MaxPool")(2, stride=1),
        # At a window of zeros, as behind a ReLU, torch's gradient of this root is NaN; the doctor says so.
        "lp_pool": lambda: nn.Sequential(Raised(), of("LPPool")(2, 2, stride=1)),
        "dropout of 0": lambda: of("Dropout")(0.0),
    }


STEPS: Layers = {
    "rnn": lambda: Recurrent(nn.RNN, hidden_size=WIDTH),
    "rnn of 2 layers": lambda: Recurrent(nn.RNN, hidden_size=WIDTH, num_layers=2),
    "lstm": lambda: Recurrent(nn.LSTM, hidden_size=WIDTH),
    "lstm both ways": lambda: Recurrent(nn.LSTM, hidden_size=WIDTH // 2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU, hidden_size=WIDTH),
    "gru time first": lambda: Recurrent(nn.GRU, batch_first=False, hidden_size=WIDTH),
    "rnn cell": lambda: Cell(nn.RNNCell),
    "lstm cell": lambda: Cell(nn.LSTMCell),
    "gru cell": lambda: Cell(nn.GRUCell),
    "attention": Attention,
    "attention causal": lambda: Attention(causal=True),
    "self attention": SelfAttention,
    "transformer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True),
}
FAMILIES: dict[str, Layers] = {
    "vector": {
        **ANYWHERE,
        **BY_FEATURE,
        "twice": _twice,
        "batch_norm": lambda: nn.BatchNorm1d(WIDTH),
        "batch_norm bare": lambda: nn.BatchNorm1d(WIDTH, affine=False),
        "group_norm": lambda: nn.GroupNorm(1, WIDTH),  # two values would normalize to a sign
    },
    "line": ANYWHERE | _by_channel(1),
    "image": ANYWHERE | _by_channel(2),
    "steps": ANYWHERE | BY_FEATURE | STEPS,
}
FIRST: dict[str, Layers] = {
    "vector": {"linear": lambda: nn.Linear(3, WIDTH)},
    "line": {"conv": lambda: nn.Conv1d(2, WIDTH, 3, padding=1)},
    "image": {"conv": lambda: nn.Conv2d(2, WIDTH, 3, padding=1)},
    "steps": {
        "linear": lambda: nn.Linear(3, WIDTH),
        "embedding": lambda: nn.Embedding(VOCABULARY, WIDTH),
        "embedding padded": lambda: nn.Embedding(VOCABULARY, WIDTH, padding_idx=0),
    },
}
ENDS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "vector": {"nothing": lambda x: x},
    "line": {"mean": lambda x: x.mean(2), "flatten": lambda x: x.flatten(1)},
    "image": {"mean": lambda x: x.mean((2, 3)), "flatten": lambda x: x.flatten(1)},
    "steps": {
        "mean": lambda x: x.mean(1),
        "last": lambda x: x[:, -1],
        "flatten": lambda x: x.flatten(1),
    },
}
INPUTS = {"vector": (3,), "line": (2, LENGTH), "image": (2, LENGTH, LENGTH), "steps": (LENGTH, 3)}
TOKENS = ("embedding", "embedding padded")


class Net(nn.Module):
    """head(end(layers(first(x)))), whose body gives ``[samples, features]``."""

    def __init__(self, model: Model, outputs: tuple[int, ...], example: Tensor) -> None:
        super().__init__()
        first = FIRST[model.family][model.first]()
        if "first frozen" in model.extras:
            first.requires_grad_(False)
        middle = [FAMILIES[model.family][name]() for name in model.layers]
        self.body = nn.Sequential(first, *middle, Lambda(ENDS[model.family][model.end]))
        with torch.no_grad():
            width = self.body.eval()(example).shape[1]
        self.features = width
        total = torch.Size(outputs).numel()
        layers = [nn.Linear(width, total)]
        if model.head == "deep":
            layers = [nn.Linear(width, WIDTH), nn.Tanh(), nn.Linear(WIDTH, total)]
        self.head = nn.Sequential(*layers, Lambda(lambda x: x.reshape(len(x), *outputs)))
        if "unused" in model.extras:
            self.unused = nn.Parameter(torch.ones(2))
        if "head partly frozen" in model.extras:
            self.head[0].bias.requires_grad_(False)

    structured = False
    """Whether predictions are two tensors in a dict and a tuple."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Any:
        features = self.body(x)
        found = self.head(features if shift is None else features + shift[..., None])
        return {"one": found, "rest": (0.5 * found,)} if self.structured else found


def draw_model(random: Random) -> Model:
    family = random.choice(list(FAMILIES))
    extras = ("first frozen", "unused", "head partly frozen")
    return Model(
        family=family,
        first=random.choice(list(FIRST[family])),
        layers=tuple(random.choices(list(FAMILIES[family]), k=random.randint(1, 3))),
        end=random.choice(list(ENDS[family])),
        head=random.choice(["linear", "deep"]),
        extras=tuple(e for e in extras if random.random() < 0.15),
        training=random.random() < 0.8,
    )


def draw_inputs(model: Model, *sizes: int, generator: torch.Generator) -> Tensor:
    """Inputs ``[*sizes, ...]`` as the model takes them."""
    if model.first in TOKENS:
        return torch.randint(0, VOCABULARY, (*sizes, LENGTH), generator=generator)
    shape = (*sizes, *INPUTS[model.family])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build_model(model: Model, outputs: tuple[int, ...], seed: int) -> Net:
    """The same model at every call; no parameter and no statistic is at a special value."""
    g = torch.Generator().manual_seed(seed)
    example = draw_inputs(model, 3, generator=g)
    if example.is_floating_point():
        example = example.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(model, outputs, example).double()
    net.train(model.training)
    disturb(net.parameters(), seed)
    for name, statistic in net.named_buffers():
        if name.endswith("running_mean"):
            statistic.normal_(0.0, 0.3, generator=g)
        elif name.endswith("running_var"):
            statistic.uniform_(0.5, 1.5, generator=g)
        elif name.endswith("num_batches_tracked"):
            statistic.fill_(1)
    return net


def disturb(parameters: Iterable[nn.Parameter], seed: int, scale: float = 0.1) -> None:
    """Moves every parameter a little, so that none is 0, 1 or equal to another by design."""
    g = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data += scale * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p)
