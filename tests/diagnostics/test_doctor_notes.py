"""What the doctor says of layers that work, but perhaps not as expected."""

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
    Own,
    assigning,
    batch_of,
    net,
    step,
)
from torch import Tensor, nn
from torch.nn import functional as F

import trlearner as tr


@pytest.mark.full
def test_batchnorm_is_noted_and_slow_where_tasks_are_masked():
    (note,) = tr.doctor(net(nn.BatchNorm1d(WIDTH)), batch_of())
    assert (note.layer, note.kind) == ("1", "note") and "other samples" in note.problem
    mask = torch.ones(TASKS, SAMPLES, dtype=torch.bool)
    mask[0, 4:] = False
    (slow,) = tr.doctor(net(nn.BatchNorm1d(WIDTH)), batch_of(mask=mask))
    assert (slow.layer, slow.kind) == ("1", "slow") and "GroupNorm" in slow.fix
    assert len(tr.doctor(net(nn.GroupNorm(2, WIDTH)), batch_of(mask=mask))) == 0


@pytest.mark.full
def test_batchnorm_in_evaluation_mode_without_statistics():
    model = net(nn.BatchNorm1d(WIDTH)).eval()
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("1", "fails") and ".train()" in found.fix
    assert "never updated" in str(step(model, "loop"))
    model.train()(torch.randn(8, 2))
    assert len(tr.doctor(model.eval(), batch_of())) == 0


def test_buffers_that_the_forward_updates_are_noted():
    model = net(Own(assigning))
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("1", "note") and "its buffer 'mean'" in found.problem
    assert step(model, "batched") is None


@pytest.mark.full
def test_convolutions_that_adapt_on_a_cpu():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(2, 1)
    )
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind, found.engines) == ("1", "slow", TOGETHER)
    learner = tr.MAML(model)
    # This one is small, so that it matters little.
    assert learner.adapt(batch_of().support, F.mse_loss).engine == "batched"
    assert len(tr.doctor(tr.ANIL(model, head="3"), batch_of())) == 0


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.spare = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        self.cut = nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh() + self.cut(x).detach())


def test_parameters_without_a_gradient():
    model = Parts()
    model.body.requires_grad_(False)
    cut, *others = tr.doctor(model, batch_of())
    assert (cut.layer, cut.kind) == ("cut", "fails")
    assert "no gradient of the loss reaches weight, bias" in cut.problem and ".detach()" in cut.fix
    assert [(f.layer, f.kind) for f in others] == [("spare", "note"), ("body", "note")]
    assert "never runs" in others[0].problem and "weight, bias frozen" in others[1].problem
    learner = tr.MAML(model)
    F.mse_loss(
        learner.adapt(batch_of().support, F.mse_loss)(batch_of().query.x), batch_of().query.y
    ).backward()
    assert all(
        p.grad is None or p.grad.abs().max() == 0
        for p in (*model.cut.parameters(), *model.spare.parameters())
    )


def test_many_frozen_layers_are_one_note():
    """As in fine-tuning by low-rank adapters, which freeze all but a few numbers."""
    model = net(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
    model[:4].requires_grad_(False)
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("(model)", "note")
    assert "60 of 65 numbers frozen in 4 layers (0, 1, 2, ...), which" in found.problem


@pytest.mark.full
def test_tied_weights_are_no_obstacle():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 1))
    model[2].weight = model[0].weight
    assert len(tr.doctor(model, batch_of())) == 0


class Sequence(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        query = isinstance(self.layer, nn.MultiheadAttention)
        return self.last((self.layer(x, x, x) if query else self.layer(x))[0])


@pytest.mark.parametrize(
    "layer", [nn.LSTM(2, 2), *later(nn.MultiheadAttention(2, 1, batch_first=True))]
)
def test_a_layer_that_takes_samples_for_time_is_named(layer: nn.Module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [f for f in tr.doctor(Sequence(layer), batch_of()) if f.kind == "note"]
    (note,) = found
    assert note.layer == "layer" and "samples of a task for steps of one sequence" in note.problem
    assert "batch_first=True" in note.fix


def words() -> tr.TaskBatch:
    x, y = torch.randint(0, 4, (TASKS, SAMPLES, 3)), torch.randn(TASKS, SAMPLES, 2)
    return tr.TaskBatch((x, y), (x, y))


@pytest.mark.parametrize(
    ("make", "kind", "problem"),
    [
        (lambda: nn.Embedding(4, 2, padding_idx=0), None, ""),
        (lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), "fails", "leaves out of second"),
        (lambda: nn.Embedding(4, 2, max_norm=0.1), "fails", "writes into its parameter 'weight'"),
        (lambda: nn.Embedding(4, 2, sparse=True), "slow", "has sparse gradients"),
        (lambda: nn.EmbeddingBag(4, 2), "fails", "is an embedding bag, which has no second"),
    ],
)
def test_embeddings(make: Callable[[], nn.Module], kind: str | None, problem: str):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = make()

        def forward(self, x: Tensor) -> Tensor:
            rows = self.table(x)
            return (rows if rows.ndim == 2 else rows.sum(1)).tanh()

    found = tr.doctor(Words(), words())
    if kind is None:
        assert not found
    else:
        assert (found[0].layer, found[0].kind) == ("table", kind) and problem in found[0].problem


@pytest.mark.parametrize("odd", [True, *later(False)])
def test_a_pooling_layer_without_a_finite_gradient_is_named(odd: bool):
    """A cube root of a negative sum is NaN, a square root of zero has no finite derivative."""
    pool = nn.LPPool1d(3 if odd else 2, 2)
    middle = [] if odd else [nn.Threshold(100.0, 0.0)]
    model = nn.Sequential(nn.Linear(2, 4), *middle, pool, nn.Linear(2, 1))
    (found,) = tr.doctor(model, batch_of())
    assert found.layer == str(len(middle) + 1) and found.kind == "fails"
    assert found.problem == "LPPool1d has outputs or gradients that are not finite on this batch."
    assert "average pooling" in found.fix
    model[len(middle) + 1] = nn.AvgPool1d(2)
    assert all(f.layer != found.layer for f in tr.doctor(model, batch_of()))


def test_inner_steps_that_explode_are_the_steps_fault():
    learner = tr.MAML(net(), lr=1e30, steps=3)
    (found,) = tr.doctor(learner, batch_of())
    assert found.layer == "(meta-step)" and "not finite" in found.problem
