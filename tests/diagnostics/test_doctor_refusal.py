"""The doctor says what cannot run at all."""

import pytest
from patients import (
    WIDTH,
    Attention,
    batch_of,
    net,
)
from torch import Tensor, nn

import trlearner as tr


@pytest.mark.full
def test_a_forward_that_raises_is_reported_with_what_came_before_it():
    model = nn.Sequential(nn.Linear(2, WIDTH), Attention(), nn.Linear(3, 1), nn.LSTM(1, 1))
    raised, broken, *rest = tr.doctor(model, batch_of())
    assert (raised.layer, raised.kind) == ("2", "fails")
    assert "Linear fails in its forward: RuntimeError: mat1 and mat2" in raised.problem
    assert "make model(x) run" in raised.fix
    assert broken.layer == "1.inner" and not rest


@pytest.mark.unchecked
def test_a_model_that_returns_a_tuple():
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    (found,) = tr.doctor(Two(2, 1), batch_of())
    assert found.kind == "fails" and "several tensors for predictions" in found.problem


def test_a_loss_of_many_numbers():
    (found,) = tr.doctor(net(), batch_of(), lambda p, y: (p - y).square())
    assert found.kind == "fails" and "loss_fn must return a scalar" in found.problem


@pytest.mark.parametrize("model", [nn.Tanh(), net().requires_grad_(False)])
def test_a_model_without_anything_to_adapt(model: nn.Module):
    found = next(iter(tr.doctor(model, batch_of(2 if isinstance(model, nn.Tanh) else 1))))
    assert (found.layer, found.kind) == ("(model)", "fails")
    assert "no parameter that could adapt" in found.problem


def test_a_lazy_layer():
    (found,) = tr.doctor(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1)), batch_of())
    assert (found.layer, found.kind) == ("0", "fails") and "call the model once" in found.fix


@pytest.mark.unchecked
def test_what_is_no_model_no_batch_or_no_loss_is_refused():
    model, batch = net(), batch_of()
    with pytest.raises(TypeError, match=r"model must be an nn\.Module or a learner, got str\."):
        tr.doctor("net", batch)
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2))
    with pytest.raises(TypeError, match=r"got TRLearner\. Pass the network"):
        tr.doctor(reg, batch)
    with pytest.raises(TypeError, match="batch must be a TaskBatch, got tuple.*support="):
        tr.doctor(model, (batch.support, batch.query))
    with pytest.raises(TypeError, match="loss_fn must be a function.*got str"):
        tr.doctor(model, batch, "mse")

    class Single(nn.Linear):
        def __deepcopy__(self, memo: dict) -> nn.Module:
            raise RuntimeError("there can be only one")

    with pytest.raises(ValueError, match="must be copyable.*there can be only one"):
        tr.doctor(Single(2, 1), batch)
