"""The doctor examines whole models and learners, and leaves them as they were."""

import contextlib
import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from contracts import later
from patients import (
    SAMPLES,
    TASKS,
    TOGETHER,
    WIDTH,
    Attention,
    Own,
    averaging,
    batch_of,
    net,
    spectral,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import trlearner as tr


@pytest.mark.parametrize(
    "model",
    [
        net(nn.ReLU(), nn.Dropout(0.3), nn.LayerNorm(WIDTH)),
        net(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
        *later(
            net(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.GELU()),
            net(nn.GroupNorm(2, WIDTH), nn.SiLU()).double(),
        ),
    ],
    ids=["dropout", "in-place relu", "weight norm", "double"],
)
def test_a_healthy_model_has_no_findings(model: nn.Module):
    batch = batch_of().to(next(model.parameters()).dtype)
    diagnosis = tr.doctor(model, batch)
    assert list(diagnosis) == [] and diagnosis.ok
    assert str(diagnosis).startswith("ok: nothing found in ")


@pytest.mark.full
def test_all_broken_layers_are_found_at_once():
    model = net(
        Attention(),
        Own(lambda m, x: torch.cdist(x, m.weight)),
        Own(lambda m, x: x if x.sum() > 0 else -x),
        spectral(),
        Attention(),
        Own(lambda m, x: x * m.number),
    )
    diagnosis = tr.doctor(model, batch_of())
    found = {f.layer: f.kind for f in diagnosis}
    assert found == {
        "1.inner": "fails", "5.inner": "fails", "2": "fails", "3": "slow", "4": "slow", "6": "slow"
    }  # fmt: skip
    assert len(diagnosis) == 6
    text = str(diagnosis)
    assert text.startswith("not ok: 3 fail, 3 slow, in ")
    assert "1. fails: 1.inner, 5.inner\n" in text and "slow: 6 (compiled)" in text


@pytest.mark.full
def test_a_composite_answers_for_its_own_forward_only():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention()

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return h if h.sum() > 0 else 2 * h

    first, second = tr.doctor(net(Outer()), batch_of())
    assert (first.layer, second.layer) == ("1.inner.inner", "1")
    assert "fused attention" in first.problem and second.problem.startswith("Outer branches")


def test_the_model_itself_and_the_loss_have_names():
    class Whole(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.mean().item()

    def loss_fn(p: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(p, y).mean()

    loss, model = tr.doctor(Whole(2, 1), batch_of(), loss_fn)
    assert (model.layer, model.kind) == ("(model)", "slow") and "Whole reads" in model.problem
    assert (loss.layer, loss.kind) == ("loss_fn", "fails") and "The loss calls" in loss.problem


@pytest.mark.full
def test_a_shared_layer_is_named_once_with_all_its_names():
    model = net(Attention(), nn.Tanh())
    model.append(nn.Identity())
    model.insert(2, model[1])
    (found,) = tr.doctor(model, batch_of())
    assert found.layer == "1.inner (also 2.inner)"


@pytest.mark.full
def test_each_call_of_a_shared_layer_is_tried():
    """The second call only is small enough for the kernel without a second derivative."""

    class Distances(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cdist(x, y)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distances = Distances()

        def forward(self, x: Tensor) -> Tensor:
            large = self.distances(x.repeat(10, 1), x.repeat(10, 1)).mean()
            return x * (large + self.distances(x, y=x).mean())

    (found,) = tr.doctor(net(Twice()), batch_of())
    assert found.layer == "1.distances"


@pytest.mark.full
def test_nothing_is_changed():
    model = net(Own(averaging), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), Attention(), spectral())
    model[3].eval()
    temperature = nn.Parameter(torch.ones(()))

    def loss_fn(p: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p * temperature, y)

    loss_fn(model(torch.randn(5, 2)), torch.zeros(5, 1)).backward()
    batch = batch_of()
    held = [*model.parameters(), temperature, batch.support.x, batch.query.y]
    before = [t.detach().clone() for t in held]
    gradients = [t.grad if t.grad is None else t.grad.clone() for t in held]
    state = copy.deepcopy(model.state_dict())
    attributes = [(path, dict(vars(m))) for path, m in model.named_modules()]
    versions, random = [t._version for t in held], torch.get_rng_state()
    filters, hooks = list(warnings.filters), [len(m._forward_hooks) for m in model.modules()]
    tr.doctor(model, batch, loss_fn)
    assert torch.equal(torch.get_rng_state(), random) and warnings.filters == filters
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))
    assert [t._version for t in held] == versions
    for t, gradient in zip(held, gradients, strict=True):
        assert (t.grad is None) if gradient is None else torch.equal(t.grad, gradient)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert [(path, dict(vars(m))) for path, m in model.named_modules()] == attributes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_writing_into_the_batch_is_found_and_not_done(layer: nn.Module):
    batch = batch_of()
    before = batch.support.x.clone()
    (found,) = tr.doctor(nn.Sequential(layer, nn.Linear(2, 1)), batch)
    assert (found.layer, found.kind) == ("0", "fails")
    assert "writes into the batch's inputs in place" in found.problem
    assert "inplace=False" in found.fix
    assert torch.equal(batch.support.x, before)
    # It is true: engine batched passes a view of the batch.
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(2, 1))
    with contextlib.suppress(RuntimeError):
        tr.MAML(model, engine="batched").adapt(batch.support, F.mse_loss)
    assert not torch.equal(batch.support.x, before)


@pytest.mark.full
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode: Callable):
    model, batch = net(Attention()), batch_of()
    with mode():
        inside = tr.doctor(model, batch)
    assert inside == tr.doctor(model, batch)
    assert [f.layer for f in inside] == ["1.inner"]


@pytest.mark.full
def test_anil_needs_second_derivatives_in_its_head_only():
    model = net(Attention())
    assert len(tr.doctor(tr.ANIL(model, head="2"), batch_of())) == 0
    (found,) = tr.doctor(
        tr.ANIL(nn.Sequential(nn.Linear(2, WIDTH), Attention()), head="1"), batch_of(WIDTH)
    )
    assert found.layer == "1.inner"


@pytest.mark.full
def test_anil_blames_its_head_and_not_its_body():
    head = nn.Sequential(Attention(), Own(lambda m, x: x if x.sum() > 0 else -x))
    model = nn.Sequential(
        nn.Linear(2, WIDTH), Attention(), Own(lambda m, x: x if x.sum() > 0 else -x), head
    )
    found = tr.doctor(tr.ANIL(model, head="3"), batch_of(WIDTH))
    assert {f.layer: f.engines for f in found} == {
        "3.0.inner": ("higher", "loop", "channels_last", "batched", "compiled"),
        "3.1": TOGETHER,
        "2": ("compiled",),
    }


@pytest.mark.full
def test_protonet_needs_no_second_derivative():
    y = torch.arange(SAMPLES).repeat(TASKS, 1) % 2
    x = torch.randn(TASKS, SAMPLES, 2)
    batch = tr.TaskBatch((x, y), (x, y), ways=2)
    assert len(tr.doctor(tr.ProtoNet(nn.Sequential(nn.Linear(2, WIDTH), Attention())), batch)) == 0


@pytest.mark.full
@pytest.mark.parametrize("kind", [tr.MetaSGD, tr.TNet])
def test_other_learners(kind: type):
    (found,) = tr.doctor(kind(net(Attention(), nn.Tanh()), steps=3), batch_of())
    assert found.layer == "1.inner"


@pytest.mark.full
def test_tokens_and_classes():
    x, y = torch.randint(7, (TASKS, SAMPLES, 3)), torch.randint(2, (TASKS, SAMPLES))
    batch = tr.TaskBatch((x, y), (x, y), ways=2)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    assert len(tr.doctor(model, batch)) == 0
    (found,) = tr.doctor(
        nn.Sequential(nn.Embedding(7, 4), nn.LSTM(4, 4, batch_first=True), Last()), batch
    )
    assert (found.layer, found.kind) == ("1", "slow")


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, found: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
        return self.out(found[1][0][0])
