"""Modules called as pure functions, and what is asked of their layers."""

import contracts
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import trlearner as tr
from trlearner.base.functional import (
    check_statistics,
    couples_samples,
    discarded_statistics,
    pure_call,
    take,
    tensors,
)

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 0.0, "atol": 1e-12}


class Counting(nn.Module):
    """Writes to its own buffers in forward, in both of the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().clone()
        return self.weight * x * self.calls


def snapshot(module: nn.Module) -> dict[str, tuple[int, Tensor]]:
    found = [*module.named_parameters(), *module.named_buffers()]
    return {name: (id(t), t.detach().clone()) for name, t in found}


def assert_untouched(module: nn.Module, before: dict[str, tuple[int, Tensor]]) -> None:
    after = snapshot(module)
    assert list(after) == list(before)
    for name, (identity, value) in before.items():
        assert after[name][0] == identity, name
        assert torch.equal(after[name][1], value), name


# ---- pure_call ----------------------------------------------------------------------------------


def test_pure_call_uses_the_state():
    layer = nn.Linear(2, 3).double()
    weight, bias = torch.randn(3, 2).double(), torch.randn(3).double()
    x = torch.randn(4, 2).double()
    before = snapshot(layer)
    found = pure_call(layer, {"weight": weight, "bias": bias}, x)
    assert_close(found, x @ weight.T + bias, **TIGHT)
    assert_untouched(layer, before)


def test_pure_call_takes_what_is_missing_from_the_module():
    layer = nn.Linear(2, 3).double()
    x, bias = torch.randn(4, 2).double(), torch.randn(3).double()
    assert_close(pure_call(layer, {"bias": bias}, x), x @ layer.weight.T + bias, **TIGHT)
    assert_close(pure_call(layer, {}, x), layer(x), **TIGHT)


def test_gradients_reach_the_state_and_not_the_module():
    layer = nn.Linear(2, 1)
    weight = torch.randn(1, 2, requires_grad=True)
    pure_call(layer, {"weight": weight}, torch.ones(3, 2)).sum().backward()
    assert_close(weight.grad, torch.full((1, 2), 3.0), **EXACT)
    assert layer.weight.grad is None and layer.bias.grad is not None


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)]
)
def test_running_statistics_are_left_alone(layer: nn.Module):
    layer.train()
    x = torch.randn(5, 3, 4) + 2
    state = dict(layer.named_buffers())
    before, copies = snapshot(layer), {n: t.clone() for n, t in state.items()}
    found = pure_call(layer, state, x)
    assert_untouched(layer, before)
    assert all(torch.equal(state[n], copies[n]) for n in copies)
    assert layer.track_running_stats is True
    # And yet it normalizes with the batch's own statistics, like the plain call.
    assert_close(found, layer(x), rtol=0.0, atol=1e-6)
    assert not torch.equal(layer.running_mean, before["running_mean"][1])


def test_a_module_that_writes_to_its_buffers_changes_nothing():
    module = Counting()
    state = {"calls": torch.tensor(4.0), "last": torch.ones(3)}
    before = snapshot(module)
    x = torch.arange(3.0)
    for _ in range(2):
        assert_close(pure_call(module, state, x), 10 * x, **EXACT)
    assert_untouched(module, before)
    assert state["calls"].item() == 4 and torch.equal(state["last"], torch.ones(3))


def test_an_error_in_forward_leaves_the_module_as_it_was():
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            raise RuntimeError("on purpose")

    module = Failing()
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="on purpose"):
        pure_call(module, {"norm.weight": torch.ones(2)}, torch.randn(3, 2))
    assert_untouched(module, before)
    assert module.norm.track_running_stats is True


def test_tied_weights_move_together():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(2, 2, bias=False)
            self.out = nn.Linear(2, 2, bias=False)
            self.out.weight = self.into.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.into(x))

    module = Tied().double()
    assert [name for name, _ in module.named_parameters()] == ["into.weight"]
    weight, x = torch.randn(2, 2).double(), torch.randn(3, 2).double()
    found = pure_call(module, {"into.weight": weight}, x)
    assert_close(found, x @ weight.T @ weight.T, **TIGHT)
    assert module.out.weight is module.into.weight


def test_a_shared_buffer_stays_shared():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Module()
            self.one.register_buffer("scale", torch.ones(()))
            self.two = nn.Module()
            self.two.register_buffer("scale", self.one.scale)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.one.scale + x * self.two.scale

    found = pure_call(Shared(), {"one.scale": torch.tensor(3.0)}, torch.ones(2))
    assert_close(found, torch.full((2,), 6.0), **EXACT)


def test_batchnorm_runs_under_vmap():
    norm = nn.BatchNorm1d(2).double()
    x = torch.randn(3, 5, 2).double()
    found = torch.vmap(lambda one: pure_call(norm, {}, one))(x)
    wanted = torch.stack([(o - o.mean(0)) / (o.var(0, correction=0) + norm.eps).sqrt() for o in x])
    assert_close(found, wanted, rtol=0.0, atol=1e-9)


def test_only_layers_that_record_are_switched():
    model = nn.Sequential(
        nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2, track_running_stats=False)
    )
    with discarded_statistics(model):
        assert [m.track_running_stats for m in model] == [False, True, False]
    assert [m.track_running_stats for m in model] == [True, True, False]


# ---- couples_samples ----------------------------------------------------------------------------


class Attention(nn.Module):
    couples_samples = True


@pytest.mark.parametrize(
    ("module", "coupled"),
    [
        (nn.Linear(2, 2), False),
        (nn.BatchNorm1d(2), True),
        (nn.BatchNorm1d(2).eval(), False),
        (nn.BatchNorm1d(2, track_running_stats=False), True),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), True),
        (nn.SyncBatchNorm(2), True),
        (nn.InstanceNorm1d(2), False),
        (nn.InstanceNorm1d(2, track_running_stats=True), False),
        (nn.GroupNorm(1, 2), False),
        (nn.LayerNorm(2), False),
        (nn.Dropout(), False),
        (Attention(), True),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(2))), True),
        (nn.Sequential(nn.Linear(2, 2), Attention()), True),
    ],
)
def test_couples_samples(module: nn.Module, coupled: bool):
    assert couples_samples(module) is coupled


@pytest.mark.parametrize("track", [False, True])
def test_couples_samples_is_true_to_what_the_layer_does(track: bool):
    for layer in (nn.BatchNorm1d(2, track_running_stats=track), nn.InstanceNorm1d(2)):
        for mode in (False, True):
            layer.train(mode)
            x = torch.randn(6, 2, 3)
            whole, part = (pure_call(layer, {}, v)[:3] for v in (x, x[:3]))
            assert couples_samples(layer) == (not torch.allclose(whole, part, rtol=0.0, atol=1e-5))


# ---- check_statistics ---------------------------------------------------------------------------


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))).eval()


def test_statistics_that_were_set_back_are_refused():
    layer = nn.BatchNorm1d(2)
    layer(torch.randn(4, 2))
    check_statistics(layer.eval())
    layer.reset_running_stats()
    with pytest.raises(ValueError, match="evaluation mode needs running statistics"):
        check_statistics(layer)


def test_statistics_that_were_never_updated_are_refused():
    both = nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)).eval()
    with pytest.raises(
        ValueError, match=r"^model\.0, model\.1: evaluation mode needs running stat"
    ):
        check_statistics(both)
    with pytest.raises(ValueError, match=r"^extractor: evaluation mode"):
        check_statistics(nn.BatchNorm1d(2).eval(), "extractor")


@pytest.mark.parametrize(
    ("advice", "follow"),
    [
        (r"\(\.train\(\)\)", lambda m: m.train()),
        (
            "track_running_stats=False",
            lambda m: nn.Sequential(m[0], nn.BatchNorm1d(2, track_running_stats=False)).eval(),
        ),
        ("GroupNorm", lambda m: nn.Sequential(m[0], nn.GroupNorm(1, 2)).eval()),
    ],
)
def test_the_ways_out_that_the_error_names_work(advice: str, follow):
    model = frozen()
    with pytest.raises(ValueError, match=rf"^model\.1\.0: .*{advice}"):
        check_statistics(model)
    model = follow(model)
    check_statistics(model)
    assert torch.isfinite(pure_call(model, {}, torch.randn(4, 2))).all()


def test_updated_statistics_are_accepted():
    model = frozen().train()
    model(torch.randn(8, 2))
    model.eval()
    check_statistics(model)
    assert model[1][0].num_batches_tracked == 1


def test_statistics_loaded_without_the_counter_are_accepted():
    model = frozen()
    model[1][0].running_mean.fill_(0.5)
    check_statistics(model)
    model[1][0].num_batches_tracked = None
    check_statistics(model)
    model[1][0].running_mean.fill_(0.0)
    with pytest.raises(ValueError, match=r"^model\.1\.0: evaluation mode"):
        check_statistics(model)


# ---- tensors, take ------------------------------------------------------------------------------


def test_tensors_are_the_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    found = tensors(model)
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(found) == list(wanted)
    assert all(found[name] is wanted[name] for name in wanted)


def test_tensors_have_no_graph_where_gradients_are_off():
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        found = tensors(layer)
    assert not any(t.requires_grad for t in found.values())
    assert found["weight"].data_ptr() == layer.weight.data_ptr()


def test_tensors_include_parameters_without_a_width():
    layer = nn.LazyLinear(2)
    with torch.no_grad():
        assert tensors(layer)["weight"] is layer.weight


def test_take_chooses_samples_of_each_task():
    values, choice = torch.randn(3, 4, 2), torch.tensor([[0, 3], [2, 2], [1, 0]])
    wanted = torch.stack([values[i][choice[i]] for i in range(3)])
    assert_close(take(values, choice), wanted, **EXACT)


@pytest.mark.parametrize("engine", contracts.BATCHED_FIRST)
def test_a_module_of_two_names_is_left_as_it_was(engine: str) -> None:
    layer = nn.Linear(2, 2).double()
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(2, 3).double())
    weight = layer.weight
    learner = tr.MAML(model, lr=0.1, steps=2, engine=engine)
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2)).double()
    out = reg(learner, contracts.regression_batch())
    out.loss.backward()
    assert layer.weight is weight and isinstance(weight, nn.Parameter)
    assert weight.grad is not None and weight.grad.abs().max() > 0
