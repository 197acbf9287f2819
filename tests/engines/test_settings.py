"""A graph is made anew when anything changes that its trace may have read, and only then."""

import functools
import gc
import types
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrize

import trlearner as tr
from trlearner.engines import compiled
from trlearner.engines.settings import settings

SCALE = 1.0
FACTORS = [1.0, 1.0]


@dataclass
class Inner:
    scale: float = 1.0


@dataclass
class Config:
    inner: Inner = field(default_factory=Inner)
    scales: list[float] = field(default_factory=lambda: [1.0])


class Slotted:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1.0


def helper(x: Tensor) -> Tensor:
    return x * SCALE * FACTORS[0]


class Net(nn.Module):
    """A model that reads everything that a model may read, each with no influence at first."""

    shared = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(contracts.INPUTS, contracts.OUTPUTS)
        self.leaky = nn.LeakyReLU(1.0)
        self._scale = 1.0
        self.config = Config()
        self.space = types.SimpleNamespace(scale=1.0)
        self.slotted = Slotted()
        self.table = {"scale": 1.0}
        self.held = torch.ones(1)
        self.function = functools.partial(torch.mul, other=1.0)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        scale = self._scale * self.config.inner.scale * self.config.scales[0] * self.space.scale
        scale = scale * self.slotted.scale * self.table["scale"] * self.held.item() * self.shared
        return self.function(self.leaky(helper(self.layer(x)) * scale))


def set_global(net: Net) -> None:
    global SCALE
    SCALE = 3.0


def set_class(net: Net) -> None:
    Net.shared = 3.0


def set_forward(net: Net) -> None:
    net.layer.forward = lambda x: 3 * nn.Linear.forward(net.layer, x)  # type: ignore[method-assign]


class Triple(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


CHANGES: dict[str, Callable[[Net], object]] = {
    "frozen": lambda net: net.layer.weight.requires_grad_(False),
    "private": lambda net: setattr(net, "_scale", 3.0),
    "dataclass": lambda net: setattr(net.config.inner, "scale", 3.0),
    "list in a dataclass": lambda net: net.config.scales.__setitem__(0, 3.0),
    "namespace": lambda net: setattr(net.space, "scale", 3.0),
    "slots": lambda net: setattr(net.slotted, "scale", 3.0),
    "dict": lambda net: net.table.update(scale=3.0),
    "tensor in place": lambda net: net.held.fill_(3.0),
    "partial": lambda net: setattr(net, "function", functools.partial(torch.mul, other=3.0)),
    "library module": lambda net: setattr(net.leaky, "negative_slope", 0.1),
    "class attribute": set_class,
    "global": set_global,
    "global list": lambda net: FACTORS.__setitem__(0, 3.0),
    "forward": set_forward,
    "hook": lambda net: net.layer.register_forward_hook(lambda m, x, y: 3 * y),
    "pre-hook": lambda net: net.layer.register_forward_pre_hook(lambda m, x: (3 * x[0],)),
    "submodule": lambda net: setattr(net, "leaky", nn.Tanh()),
    "parametrization": lambda net: parametrize.register_parametrization(
        net.layer, "weight", Triple()
    ),
}
FIRST = list(CHANGES)[::3]
"""The others are left to `make test-all`."""


@pytest.fixture(autouse=True)
def as_before() -> object:
    global SCALE
    yield
    SCALE, FACTORS[0], Net.shared = 1.0, 1.0, 1.0


def answers(learner: tr.Learner, batch: tr.TaskBatch, loss_fn: object = mse_loss) -> Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the meta-step is traced anew")
        return learner.adapt(batch.support, loss_fn)(batch.query.x)  # type: ignore[arg-type]


def pair(net: nn.Module) -> tuple[tr.Learner, tr.Learner]:
    made = (contracts.learner("maml", net, engine, steps=1) for engine in ("traced", "batched"))
    traced, batched = made
    return traced, batched


@pytest.mark.parametrize(
    "change", [*FIRST, *contracts.later(*(name for name in CHANGES if name not in FIRST))]
)
def test_what_a_model_reads_may_change(change: str) -> None:
    net, batch = Net(), contracts.regression_batch(tasks=2, support=2)
    traced, batched = pair(net)
    before = answers(traced, batch)
    close(before, answers(batched, batch), 1e-12)
    CHANGES[change](net)
    expected = answers(batched, batch)
    assert not torch.allclose(expected, before)
    close(answers(traced, batch), expected, 1e-12)


def test_a_global_hook_counts() -> None:
    net, batch = contracts.net(), contracts.regression_batch(tasks=2, support=2)
    traced, batched = pair(net)
    before = answers(traced, batch)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, x, y: 3 * y if isinstance(module, nn.Linear) else None
    )
    try:
        expected = answers(batched, batch)
        assert not torch.allclose(expected, before)
        close(answers(traced, batch), expected, 1e-12)
    finally:
        handle.remove()
    close(answers(traced, batch), before, 1e-12)


class Weighted:
    def __init__(self) -> None:
        self.weight, self._seen = 1.0, 0

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self.weight * mse_loss(predictions, targets)

    def method(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self(predictions, targets)


def global_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    return SCALE * mse_loss(predictions, targets)


def closed_over() -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], None]]:
    weight = 1.0

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        return weight * mse_loss(predictions, targets)

    def change() -> None:
        nonlocal weight
        weight = 3.0

    return loss, change


def losses() -> dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], object]]]:
    called, bound, partial = Weighted(), Weighted(), Weighted()
    return {
        "closure": closed_over(),
        "callable object": (called, lambda: setattr(called, "weight", 3.0)),
        "bound method": (bound.method, lambda: setattr(bound, "weight", 3.0)),
        "partial": (functools.partial(partial), lambda: setattr(partial, "weight", 3.0)),
        "global": (global_loss, lambda: set_global(Net())),
    }


@pytest.mark.parametrize("kind", losses())
def test_what_a_loss_reads_may_change(kind: str) -> None:
    loss, change = losses()[kind]
    batch = contracts.regression_batch(tasks=2, support=2)
    traced, batched = pair(contracts.net())
    before = answers(traced, batch, loss)
    change()
    expected = answers(batched, batch, loss)
    assert not torch.allclose(expected, before)
    close(answers(traced, batch, loss), expected, 1e-12)


class Scaled(nn.Module):
    """An extractor with a private attribute."""

    def __init__(self) -> None:
        super().__init__()
        self._scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self._scale)


def test_what_an_extractor_reads_may_change() -> None:
    extractor, batch = Scaled(), contracts.regression_batch(tasks=3, support=2)
    reg = tr.TRLearner(tr.InputEncoder(extractor, dim=contracts.INPUTS), lam=0.5).double()
    traced, batched = pair(contracts.net())
    with torch.no_grad():
        before = reg(traced, batch).relation_loss
        extractor._scale = 3.0
        expected = reg(batched, batch).relation_loss
        assert not torch.allclose(expected, before)
        with pytest.warns(UserWarning, match=r"settings of the regularizer \(.*\._scale\)"):
            found = reg(traced, batch).relation_loss
    close(found, expected, 1e-12)


# ---- and only then ------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The graph that each trace came to."""
    seen: list[object] = []
    build = compiled.build

    def noting(*arguments, **options):  # type: ignore[no-untyped-def]
        seen.append(build(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(compiled, "build", noting)
    return seen


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(contracts.INPUTS, contracts.OUTPUTS, dtype=torch.float64)
        self.calls, self.outside = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Declared(Counting):
    outside_graph = ("calls", "outside")


def test_what_forward_itself_sets_is_told_once_and_left_out(builds: list[object]) -> None:
    learner, batch = tr.MAML(Counting(), 0.1, 1, engine="traced"), contracts.regression_batch()
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"changed model\.calls\. .*keep it in a buffer"):
            learner.adapt(batch.support, mse_loss)
        for _ in range(3):
            learner.adapt(batch.support, mse_loss)
    assert len(builds) == 1


def test_a_change_without_influence_gives_the_same_graph(builds: list[object]) -> None:
    net = Net()
    learner, batch = tr.MAML(net, 0.1, 1, engine="traced"), contracts.regression_batch(tasks=2)
    with torch.no_grad():
        learner.adapt(batch.support, mse_loss)
        for step in range(1, compiled.LIMIT + 3):
            net.table["step"] = step
            with pytest.warns(
                UserWarning, match=r"model\.table.*in its class, e\.g\. outside_graph"
            ):
                learner.adapt(batch.support, mse_loss)
    assert all(graph is builds[0] for graph in builds)
    assert len(compiled._graphs[learner][learner]) == 1


def test_what_a_class_declares_is_left_out(builds: list[object]) -> None:
    net = Declared()
    learner, batch = tr.MAML(net, 0.1, 1, engine="traced"), contracts.regression_batch()
    with torch.no_grad():
        for _ in range(3):
            net.outside += 1
            learner.adapt(batch.support, mse_loss)
    assert len(builds) == 1


def test_the_same_lambda_made_anew_is_the_same(builds: list[object]) -> None:
    learner, batch = pair(contracts.net())[0], contracts.regression_batch(tasks=2)
    with torch.no_grad():
        for _ in range(3):
            learner.adapt(batch.support, lambda p, t: (p - t).square().mean())
    assert len(builds) == 1


def test_nothing_changed_is_the_very_same_object() -> None:
    net = Net()
    before = settings(net)
    assert settings(net) is before
    net._scale = 1.0 * float("1")
    assert settings(net) is before
    net._scale = 1  # type: ignore[assignment]
    assert settings(net).changed(before) == ["_scale"]
    del net._scale
    assert settings(net).changed(before) == ["_scale"]


def test_cycles_and_large_containers_are_no_trouble() -> None:
    net = Net()
    net.table["self"] = net.table  # type: ignore[assignment]
    net.__dict__["owner"] = net
    net.config.scales = [1.0] * 100_000
    before = settings(net)
    assert len(before.found) < 200
    net.config.scales.append(1.0)
    assert settings(net).changed(before) == ["config.scales"]


def test_nothing_is_kept_alive() -> None:
    net = Net()
    settings(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
