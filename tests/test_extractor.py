"""Feature extractors that are a part of the learner's model, in part, or not at all."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import trlearner as tr
from trlearner.encoders.extractor import OWN, Extractor
from trlearner.functional import tensors

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 0.0, "atol": 1e-9}


class Net(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 4), norm or nn.Identity(), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draw(tasks: int = 3, samples: int = 5, width: int = 2) -> Tensor:
    return torch.randn(tasks, samples, width, dtype=torch.float64)


def batch(mask: Tensor | None = None) -> tr.TaskBatch:
    return tr.TaskBatch(tr.Samples(draw(), draw(width=1), mask), (draw(), draw(width=1)))


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def make(order: str, learner, encoder) -> tuple[tr.Learner, tr.Encoder]:
    """Both orders of construction."""
    if order == "learner first":
        made = learner()
        return made, encoder()
    first = encoder()
    return learner(), first


ORDERS = ["learner first", "encoder first"]


# ---- what is registered -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["maml", "metasgd", "anil", "tnet", "protonet", "bayes"])
def test_a_part_of_the_model_is_never_registered(order: str, kind: str):
    model = Net()
    learners = {
        "maml": lambda: tr.MAML(model),
        "metasgd": lambda: tr.MetaSGD(model),
        "anil": lambda: tr.ANIL(model, head="head"),
        "tnet": lambda: tr.TNet(model),
        "protonet": lambda: tr.ProtoNet(model),
        "bayes": lambda: tr.BayesHead(model, dim=1),
    }
    _, encoder = make(order, learners[kind], lambda: tr.InputEncoder(model.features, dim=4))
    reg = tr.TRLearner(encoder=encoder)
    assert names(reg) == ["relation.weight"]
    assert list(reg.state_dict()) == ["_extra_state", "relation.weight"]
    assert list(reg.buffers()) == []
    assert not any(m is model.features for m in reg.modules())


@pytest.mark.parametrize("order", ORDERS)
def test_the_whole_model_may_be_the_extractor(order: str):
    model = Net(nn.BatchNorm1d(4))
    _, encoder = make(order, lambda: tr.MAML(model), lambda: tr.InputEncoder(model, dim=1))
    assert names(encoder) == [] and list(encoder.state_dict()) == []


@pytest.mark.parametrize("order", ORDERS)
def test_a_slice_of_the_model_is_never_registered(order: str):
    # model.features[:2] is a new module around old ones.
    model = Net(nn.BatchNorm1d(4))
    _, encoder = make(
        order, lambda: tr.MAML(model), lambda: tr.InputEncoder(model.features[:2], dim=4)
    )
    assert names(encoder) == [] and list(encoder.state_dict()) == []


@pytest.mark.parametrize("order", ORDERS)
def test_a_foreign_extractor_is_registered(order: str):
    model, foreign = Net(), nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    _, encoder = make(order, lambda: tr.MAML(model), lambda: tr.InputEncoder(foreign, dim=4))
    assert [id(p) for p in encoder.parameters()] == [id(p) for p in foreign.parameters()]
    buffers = [id(b) for b in foreign.buffers()]
    assert [id(b) for b in encoder.buffers()] == buffers and len(buffers) == 3
    assert encoder.extractor.own is foreign and encoder.extractor.module is foreign
    encoder.eval()
    assert not foreign[1].training


@pytest.mark.parametrize("order", ORDERS)
def test_of_a_mixed_extractor_the_new_layers_are_registered(order: str):
    model = Net(nn.BatchNorm1d(4))
    new = nn.Linear(4, 3)
    _, encoder = make(
        order,
        lambda: tr.MAML(model),
        lambda: tr.InputEncoder(nn.Sequential(model.features, new), dim=3),
    )
    assert names(encoder) == ["extractor.own.1.weight", "extractor.own.1.bias"]
    assert [id(p) for p in encoder.parameters()] == [id(new.weight), id(new.bias)]
    assert list(encoder.state_dict()) == names(encoder)
    assert f"regularizer.encoder.{names(encoder)[0]}" == OWN + "1.weight"


@pytest.mark.parametrize("order", ORDERS)
def test_a_new_layer_with_a_tied_weight_registers_only_what_is_new(order: str):
    model = Net()
    tied = nn.Linear(2, 4)
    tied.weight = model.features[0].weight
    _, encoder = make(order, lambda: tr.MAML(model), lambda: tr.InputEncoder(tied, dim=4))
    assert names(encoder) == ["extractor.own.bias"]


def test_buffers_of_a_mixed_module_keep_their_persistence():
    model = Net()

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.features
            self.register_buffer("kept", torch.ones(4))
            self.register_buffer("passing", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.kept * self.passing

    learner = tr.MAML(model)
    encoder = tr.InputEncoder(Mixed(), dim=4)
    assert list(encoder.state_dict()) == ["extractor.own.kept"]
    assert {n for n, _ in encoder.named_buffers()} == {
        "extractor.own.kept",
        "extractor.own.passing",
    }
    x = draw().float()
    out = tr.TRLearner(encoder=encoder)(learner, tr.TaskBatch((x, x[..., :1]), (x, x[..., :1])))
    assert torch.isfinite(out.loss)


def test_a_new_layer_without_parameters_keeps_its_buffers():
    model = Net().double()
    learner = tr.MAML(model)
    mixed = nn.Sequential(model.features, nn.BatchNorm1d(4, affine=False).double())
    encoder = tr.InputEncoder(mixed, dim=4)
    assert names(encoder) == []
    assert [n for n, _ in encoder.named_buffers()] == [
        f"extractor.own.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    ]
    found, data = encode(encoder, learner, batch()), batch()
    assert_close(found, torch.zeros_like(found), **TIGHT)  # the mean of what is centred
    mixed[1](data.query.x[0] @ torch.ones(2, 4).double())
    mixed.eval()
    wanted = mixed(data.support.x.flatten(0, 1)).unflatten(0, (3, 5)).mean(1)
    assert_close(encode(encoder, learner, data), wanted, **TIGHT)


def test_no_extractor_passes_inputs_on():
    extractor, learner = Extractor(None), tr.MAML(nn.Linear(1, 1))
    x = draw()
    assert list(extractor.state_dict()) == []
    assert_close(extractor.features(learner, learner.state(), x), x, **EXACT)
    assert_close(extractor.features(learner, learner.state(), x[..., 0]), x[..., :1], **EXACT)
    images = torch.randn(2, 3, 4, 5, 6)
    assert_close(
        extractor.features(learner, learner.state(), images), images.reshape(2, 3, 120), **EXACT
    )


def test_an_unrelated_learner_changes_nothing():
    model = Net()
    learner = tr.MAML(model)
    encoder = tr.InputEncoder(nn.Sequential(model.features, nn.Linear(4, 3)), dim=3)
    foreign = tr.InputEncoder(nn.Linear(2, 3), dim=3)
    before = names(encoder), names(foreign), list(foreign.parameters())
    tr.MAML(Net())
    assert (names(encoder), names(foreign)) == before[:2]
    assert all(a is b for a, b in zip(foreign.parameters(), before[2], strict=True))
    assert learner.model is model


def test_what_a_dead_learner_owned_stays_unregistered():
    model = Net()
    learner = tr.MAML(model)
    encoder = tr.InputEncoder(nn.Sequential(model.features, nn.Linear(4, 3)), dim=3)
    before = names(encoder)
    del learner
    gc.collect()
    again = tr.MAML(Net())
    assert names(encoder) == before == ["extractor.own.1.weight", "extractor.own.1.bias"]
    assert names(again.model) != []


def test_copies_of_a_learner_own_their_model():
    copied = copy.deepcopy(tr.MAML(Net()))
    assert names(tr.InputEncoder(copied.model.features, dim=4)) == []


def test_learner_and_regularizer_copied_together_still_belong_together():
    model = Net().double()
    learner = tr.MAML(model, lr=0.1, steps=2, engine="loop")
    reg = tr.TRLearner(encoder=tr.InputEncoder(model.features, dim=4), lam=0.5).double()
    data = batch()
    wanted = reg(learner, data).loss
    other_learner, other_reg = copy.deepcopy((learner, reg))
    assert names(other_reg) == ["relation.weight"]
    loss = other_reg(other_learner, data).loss
    assert_close(loss, wanted, **EXACT)
    loss.backward()
    assert other_learner.model.features[0].weight.grad.abs().max() > 0
    assert model.features[0].weight.grad is None


def test_an_optimizer_sees_every_parameter_once():
    model = Net()
    learner = tr.MAML(model)
    encoder = tr.InputEncoder(nn.Sequential(model.features, nn.Linear(4, 3)), dim=3)
    everything = [*learner.parameters(), *tr.TRLearner(encoder=encoder).parameters()]
    assert len({id(p) for p in everything}) == len(everything) == 4 + 2 + 1


@pytest.mark.unchecked
@pytest.mark.unchecked
@pytest.mark.parametrize("value", [lambda x: x, "features", nn.Linear(2, 4).weight])
def test_an_extractor_must_be_a_module(value: object):
    with pytest.raises(
        TypeError, match="must be an nn.Module or None, got .*wrap it in an nn.Module"
    ):
        tr.InputEncoder(value, dim=4)


# ---- whose parameters are used ------------------------------------------------------------------


def encode(encoder: tr.Encoder, learner: tr.Learner, data: tr.TaskBatch) -> Tensor:
    state = learner.state() | {f"regularizer.encoder.{n}": t for n, t in tensors(encoder).items()}
    return encoder.encode(learner, state, data, {})


def test_gradients_reach_the_right_tensors():
    model, new = Net().double(), nn.Linear(4, 3).double()
    learner = tr.MAML(model)
    mixed = nn.Sequential(model.features, new)
    encoder = tr.InputEncoder(mixed, dim=3)
    data = batch()
    embeddings = encode(encoder, learner, data)
    wanted = mixed(data.support.x.flatten(0, 1)).unflatten(0, (3, 5)).mean(1)
    assert_close(embeddings, wanted, **TIGHT)
    parameters = [*mixed.parameters(), *model.head.parameters()]
    scale = draw(1, 3, 3)[0]
    found = torch.autograd.grad((embeddings * scale).sum(), parameters, allow_unused=True)
    expected = torch.autograd.grad((wanted * scale).sum(), parameters, allow_unused=True)
    assert found[-2:] == expected[-2:] == (None, None)
    assert len(found) == 6 and all(g.abs().max() > 0 for g in found[:-2])
    assert_close(found[:-2], expected[:-2], **TIGHT)


@pytest.mark.parametrize("foreign", [False, True])
def test_the_explicit_state_is_what_counts(foreign: bool):
    """A state that differs from the modules' own tensors is the one that is used."""
    model = Net().double()
    learner = tr.MAML(model)
    module = nn.Sequential(nn.Linear(2, 4).double(), nn.Tanh()) if foreign else model.features
    encoder = tr.InputEncoder(module, dim=4)
    state = learner.state() | {f"regularizer.encoder.{n}": t for n, t in tensors(encoder).items()}
    key = OWN + "0.weight" if foreign else "model.features.0.weight"
    state[key] = state[key].detach() * 3 - 1
    state[key].requires_grad_()
    data = batch()
    found = encoder.encode(learner, state, data, {})
    bias = module[0].bias
    wanted = torch.tanh(data.support.x @ state[key].T + bias).mean(1)
    assert_close(found, wanted, **TIGHT)
    assert torch.autograd.grad(found.sum(), state[key])[0].abs().max() > 0
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        torch.autograd.grad(encoder.encode(learner, state, data, {}).sum(), module[0].weight)


def test_another_learner_than_the_owner_is_refused():
    owner, other = tr.MAML(Net().double()), tr.MAML(Net().double())
    encoder = tr.InputEncoder(owner.model.features, dim=4)
    reg = tr.TRLearner(encoder=encoder).double()
    message = (
        r"the extractor's '0.weight' belongs to a learner, .* InputEncoder\(learner.model.feat"
    )
    with pytest.raises(ValueError, match=message):
        reg(other, batch())
    assert torch.isfinite(reg(owner, batch()).loss)
    # A second learner around the same model owns it as well.
    assert torch.isfinite(reg(tr.ANIL(owner.model, head="head"), batch()).loss)


def test_tnet_features_are_the_transformed_ones():
    model = Net().double()
    learner = tr.TNet(model, lr=0.1, steps=1, engine="loop").double()
    for p in learner.transforms.parameters():
        p.data += 0.3 * torch.randn_like(p)
    encoder = tr.InputEncoder(model.features, dim=4)
    data = batch()
    layer, transform = model.features[0], learner.transforms["features/0"][0]
    hidden = (data.support.x @ layer.weight.T + layer.bias) @ transform.T
    found = encode(encoder, learner, data)
    assert_close(found, torch.tanh(hidden).mean(1), **TIGHT)
    assert (found - model.features(data.support.x).mean(1)).abs().max() > 1e-2
    gradient = torch.autograd.grad(found.square().sum(), learner.transforms["features/0"])[0]
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_batchnorm_sees_exactly_each_tasks_real_samples(masked: bool):
    model = Net(nn.BatchNorm1d(4)).double()
    learner = tr.MAML(model)
    mask = torch.ones(3, 5, dtype=torch.bool)
    if masked:
        mask[0, 3:] = mask[1, 0] = False
    data = batch(mask if masked else None)
    found = encode(tr.InputEncoder(model.features, dim=4), learner, data)
    plain = copy.deepcopy(model.features)
    wanted = torch.stack([plain(data.support.real(i)[0]).mean(0) for i in range(3)])
    assert_close(found, wanted, **TIGHT)
    together = plain(data.support.x.flatten(0, 1)).unflatten(0, (3, 5)).mean(1)
    assert (found - together).abs().max() > 1e-2
    assert model.features[1].num_batches_tracked == 0


def test_batchnorm_in_evaluation_mode_uses_its_statistics():
    model, new = Net().double(), nn.BatchNorm1d(4).double()
    learner, data = tr.MAML(model, engine="loop"), batch()
    encoder = tr.InputEncoder(nn.Sequential(model.features, new), dim=4)
    reg = tr.TRLearner(encoder=encoder).double()
    reg.eval()
    assert not new.training and model.features.training
    with pytest.raises(
        ValueError, match=r"^extractor\.1: evaluation mode needs running statistics"
    ):
        reg(learner, data)
    new.train()
    new(draw(1, 20, 4)[0])
    new.eval()
    assert torch.isfinite(reg(learner, data).loss)
    wanted = new(model.features(data.support.x.flatten(0, 1))).unflatten(0, (3, 5)).mean(1)
    assert_close(encode(encoder, learner, data), wanted, **TIGHT)


def test_convolutions_are_flattened():
    module = nn.Conv2d(1, 2, 3).double()
    x = torch.randn(2, 3, 1, 5, 6, dtype=torch.float64)
    encoder = tr.InputEncoder(module, dim=24)
    learner = tr.MAML(nn.Linear(1, 1))
    y = torch.zeros(2, 3, 1, dtype=torch.float64)
    found = encode(encoder, learner, tr.TaskBatch((x, y), (x, y)))
    wanted = torch.stack([F.conv2d(t, module.weight, module.bias).mean(0).flatten() for t in x])
    assert_close(found, wanted, **TIGHT)


def test_moving_the_regularizer_moves_a_mixed_extractors_own_part():
    model = Net()
    learner = tr.MAML(model, engine="loop")
    encoder = tr.InputEncoder(
        nn.Sequential(model.features, nn.BatchNorm1d(4), nn.Linear(4, 3)), dim=3
    )
    reg = tr.TRLearner(encoder=encoder)
    learner.double()
    reg.double()
    out = reg(learner, batch())
    out.loss.backward()
    assert out.loss.dtype == torch.float64
    assert encoder.extractor.module[2].weight.grad.dtype == torch.float64
