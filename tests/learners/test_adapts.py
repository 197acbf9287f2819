"""Which parameters adapt, by names or patterns."""

from __future__ import annotations

import pytest
import torch
from contracts import later
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

import trlearner as tr

TIGHT = {"rtol": 0.0, "atol": 1e-9}
X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 4, 2)
Y = X.sum(-1, keepdim=True).sin()


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)
    ).double()


@pytest.mark.parametrize("make", [tr.MAML, tr.MetaSGD])
@pytest.mark.parametrize(
    ("adapts", "names"),
    [
        ("4", ["4.weight", "4.bias"]),
        ("*.bias", ["0.bias", "2.bias", "4.bias"]),
        (["0.weight", "4"], ["0.weight", "4.weight", "4.bias"]),
        (None, ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_only_what_fits_adapts(make, adapts, names) -> None:  # type: ignore[no-untyped-def]
    learner = make(model(), lr=0.1, steps=2, adapts=adapts)
    fast = learner.adapt((X, Y), mse_loss).fast
    assert [name.removeprefix("model.") for name in fast] == names


@pytest.mark.parametrize("engine", ["loop", "batched", *later("higher", "traced")])
def test_the_head_by_name_is_anil(engine: str) -> None:
    found = []
    torch.manual_seed(0)
    net = model()
    batch = tr.TaskBatch((X, Y), (X + 0.1, Y))
    for learner in (
        tr.MAML(net, lr=0.1, steps=2, engine=engine, adapts="4"),
        tr.ANIL(net, head="4", lr=0.1, steps=2, engine="loop"),
    ):
        net.zero_grad()
        out = tr.TRLearner(tr.UpdateEncoder(4), lam=0.1).double()(learner, batch)
        out.loss.backward()
        found.append([out.loss, *(p.grad.clone() for p in net.parameters())])
    assert_close(found[0], found[1], **TIGHT)


def test_a_frozen_parameter_stays_though_it_fits() -> None:
    net = model()
    net[4].bias.requires_grad_(False)
    fast = tr.MAML(net, steps=1, adapts="4").adapt((X, Y), mse_loss).fast
    assert list(fast) == ["model.4.weight"]


def test_rates_are_asked_for_what_adapts_only() -> None:
    assert tr.MAML(model(), lr={"4": 0.1}, adapts="4").lr == {"4": 0.1}
    with pytest.raises(ValueError, match=r"lr gives no rate for \['2.bias'\]"):
        tr.MAML(model(), lr={"4": 0.1}, adapts=["4", "2.bias"])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("adapts", "kind", "told"),
    [
        ("head", ValueError, "adapts='head' fits no parameter of the model: "),
        (["4", "lora"], ValueError, "adapts='lora' fits no parameter"),
        (3, TypeError, "adapts must be a name or pattern of parameters, or a list of these, got 3"),
        ([], TypeError, "adapts must be a name or pattern of parameters, or a list of these, got "),
        ([3], TypeError, "adapts must be a name or pattern"),
        ("0", ValueError, "adapts='0' fits frozen parameters only"),
    ],
)
def test_what_fits_nothing_is_refused(adapts, kind, told) -> None:  # type: ignore[no-untyped-def]
    net = model()
    net[0].requires_grad_(False)
    with pytest.raises(kind, match=told):
        tr.MAML(net, adapts=adapts)
