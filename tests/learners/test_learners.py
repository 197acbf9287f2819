"""The contract that every learner keeps on every engine."""

import copy
import warnings

import contracts
import pytest
import reference
import torch
from contracts import BATCHED_FIRST, CLASSIFIERS, EAGER, ENGINES, LEARNERS, SOLVED, close
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import prune

import trlearner as tr

ALL = [*LEARNERS, *SOLVED]
EXACT = 1e-12


def problem(name: str) -> tuple[nn.Module, tr.TaskBatch, tr.types.LossFn]:
    if name in CLASSIFIERS:
        return contracts.net(), contracts.class_batch(), contracts.cross_entropy
    return contracts.net(), contracts.regression_batch(), mse_loss


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LEARNERS)
def test_zero_steps_give_the_initialisation(engine: str, name: str) -> None:
    model, batch, loss_fn = problem(name)
    learner = contracts.learner(name, model, engine, steps=0)
    adapted = learner.adapt(batch.support, loss_fn)
    if name == "tnet":
        for p in learner.transforms.parameters():
            p.data.copy_(torch.eye(p.shape[-1]))
    close(adapted(batch.query.x), torch.stack([model(x) for x in batch.query.x]), EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_step_on_a_quadratic_is_the_algebra(engine: str) -> None:
    """f(x) = w x, loss mean (w x - y)^2: w' = w - lr 2 mean(x (w x - y)), dw'/dw = 1 - 2 lr mean x^2."""
    model = nn.Linear(1, 1, bias=False).double()
    x, y = torch.randn(3, 5, 1).double(), torch.randn(3, 5, 1).double()
    learner = tr.MAML(model, lr=0.2, steps=1, engine=engine)
    w = model.weight
    fast = learner.adapt((x, y), mse_loss).fast["model.weight"]
    expected = w - 0.2 * 2 * (x * (w * x - y)).mean((1, 2))
    close(fast.flatten(), expected.flatten(), EXACT)
    (slope,) = torch.autograd.grad(fast.sum(), w)
    close(slope.flatten(), (1 - 0.4 * x.square().mean((1, 2))).sum()[None], EXACT)
    first = tr.MAML(model, lr=0.2, steps=1, first_order=True, engine=engine)
    (slope,) = torch.autograd.grad(first.adapt((x, y), mse_loss).fast["model.weight"].sum(), w)
    close(slope.flatten(), torch.tensor([3.0]).double(), EXACT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ALL)
def test_user_module_is_left_unchanged(engine: str, name: str) -> None:
    model, batch, loss_fn = problem(name)
    before = copy.deepcopy(model.state_dict())
    attributes = {path: set(vars(m)) for path, m in model.named_modules()}
    learner = contracts.learner(name, model, engine)
    reg = tr.TRLearner(encoder=tr.InputEncoder(model.body, dim=5), loss_fn=loss_fn).double()
    reg(learner, batch).loss.backward()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert attributes == {path: set(vars(m)) for path, m in model.named_modules()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ALL)
def test_meta_gradients_reach_every_initial_parameter(engine: str, name: str) -> None:
    model, batch, loss_fn = problem(name)
    learner = contracts.learner(name, model, engine)
    adapted = learner.adapt(batch.support, loss_fn)
    loss_fn(adapted(batch.query.x).flatten(0, 1), batch.query.y.flatten(0, 1)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.parameters())


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ALL)
def test_permuting_tasks_permutes_the_result(engine: str, name: str) -> None:
    model, batch, loss_fn = problem(name)
    learner = contracts.learner(name, model, engine)
    order = torch.tensor([2, 0, 3, 1])
    there = learner.adapt(batch.support, loss_fn)(batch.query.x)
    back = learner.adapt(batch[order].support, loss_fn)(batch[order].query.x)
    close(back, there[order], EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_metasgd_with_equal_fixed_rates_is_maml(engine: str) -> None:
    model, batch, loss_fn = problem("maml")
    maml = tr.MAML(model, lr=0.3, steps=3, engine=engine)
    for per, per_step in [("element", False), ("element", True), ("layer", False), ("layer", True)]:
        meta = tr.MetaSGD(model, lr=0.3, steps=3, per=per, per_step=per_step, engine=engine)
        x, support = batch.query.x, batch.support
        close(meta.adapt(support, loss_fn)(x), maml.adapt(support, loss_fn)(x), EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_tnet_with_identity_transforms_is_maml(engine: str) -> None:
    model, batch, loss_fn = problem("maml")
    maml = tr.MAML(model, lr=0.3, steps=3, engine=engine)
    tnet = tr.TNet(model, lr=0.3, steps=3, engine=engine).double()
    x, support = batch.query.x, batch.support
    close(tnet.adapt(support, loss_fn)(x), maml.adapt(support, loss_fn)(x), EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_anil_leaves_the_body_fixed_and_equals_maml_with_a_still_body(engine: str) -> None:
    model, batch, loss_fn = problem("anil")
    anil = tr.ANIL(model, head="head", lr=0.3, steps=3, engine=engine)
    maml = tr.MAML(model, lr={"head": 0.3, "body": 0.0}, steps=3, engine=engine)
    adapted = anil.adapt(batch.support, loss_fn)
    assert set(adapted.fast) == {"model.head.weight", "model.head.bias"}
    x = batch.query.x
    close(adapted(x), maml.adapt(batch.support, loss_fn)(x), EXACT)
    close(adapted.cross(x), maml.adapt(batch.support, loss_fn).cross(x), EXACT)


@pytest.mark.parametrize("engine", EAGER)
def test_anil_runs_the_body_once_per_sample(engine: str) -> None:
    model, batch, loss_fn = problem("anil")
    seen = []
    model.body.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    learner = tr.ANIL(model, head="head", steps=5, engine=engine)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=4), loss_fn=loss_fn).double()
    reg(learner, batch)
    seen.clear()
    reg(learner, batch)
    samples = sum(shape[0] for shape in seen)
    assert samples == len(batch) * (5 + 6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("grouped", [1, 2])
def test_tnet_transforms_come_after_each_convolution(engine: str, grouped: int) -> None:
    """Folding T into the weights equals applying it to what the layer returns."""
    conv = nn.Conv2d(2, 4, 3, padding=1, groups=grouped).double()
    model = nn.Sequential(conv, nn.Flatten()).double()
    learner = tr.TNet(model, lr=0.1, steps=0, engine=engine).double()
    transform = learner.transforms["0"]
    transform.data += torch.randn(transform.shape).double()
    x = torch.randn(2, 3, 2, 5, 5).double()
    found = learner.adapt((x, torch.zeros(2, 3, 100).double()), mse_loss)(x)
    for task in range(2):
        block = torch.block_diag(*transform)
        expected = torch.einsum("cd,sdhw->schw", block, conv(x[task])).flatten(1)
        close(found[task], expected, EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_rates_by_layer_and_step(engine: str) -> None:
    model, batch, loss_fn = problem("maml")
    rates = {"": [0.3, 0.1], "head": 0.2}
    learner = tr.MAML(model, lr=rates, steps=3, engine=engine)
    x, y = batch.support.real(1)

    def rate(name: str, step: int) -> float:
        return 0.2 if name.startswith("head") else (0.3 if step == 0 else 0.1)

    params = dict(model.named_parameters())
    expected = reference.adapt(reference.mlp, params, list(params), x, y, loss_fn, rate, 3)
    fast = learner.adapt(batch.support, loss_fn).fast
    for name, value in expected.items():
        close(fast["model." + name][1], value, EXACT)


@pytest.mark.parametrize("engine", ENGINES)
def test_learned_rates_per_step_get_their_own_gradients(engine: str) -> None:
    model, batch, loss_fn = problem("maml")
    learner = tr.MetaSGD(model, lr=0.3, steps=2, per="layer", per_step=True, engine=engine).double()
    adapted = learner.adapt(batch.support, loss_fn)
    loss_fn(adapted(batch.query.x), batch.query.y).backward()
    for rates in learner.rates.values():
        assert rates.grad.shape == (2,)
        assert (rates.grad != 0).all()
        assert rates.grad[0] != rates.grad[1]


def test_learned_rates_and_transforms_are_saved() -> None:
    for name in ("metasgd", "tnet"):
        made = contracts.learner(name, contracts.net(), "loop")
        other = contracts.learner(name, contracts.net(seed=5), "loop")
        other.load_state_dict(made.state_dict())
        batch = contracts.regression_batch()
        found, wanted = (one.adapt(batch.support, mse_loss)(batch.query.x) for one in (other, made))
        close(found, wanted, 0.0)
        assert set(made.model.state_dict()) == set(contracts.net().state_dict())


def test_a_class_without_support_is_as_good_as_impossible() -> None:
    x = torch.randn(2, 4, 2).double()
    y = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 2]])
    learner = tr.ProtoNet(contracts.net())
    logits = learner.adapt(tr.Samples(x, y, ways=3), contracts.cross_entropy)(x)
    assert (logits[0, :, 2] == -1e4).all()
    assert (logits[1] > -1e4).all()
    logits.log_softmax(-1).exp().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


class Scaled(nn.Module):
    """Has something behind its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.head(self.body(x))


BATCH = contracts.regression_batch()


def tied(part: str) -> nn.Sequential:
    """Two layers that share their weight or their bias."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    setattr(model[1], part, getattr(model[0], part))
    return model


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tr.MAML(lambda x: x), "model must be an nn.Module, got function"),
        (lambda: tr.MAML(contracts.net(), steps=-1), "steps must be a whole number of at least 0"),
        (lambda: tr.MAML(contracts.net(), lr=float("nan")), "lr must be finite and at least 0"),
        (lambda: tr.MAML(contracts.net(), lr=[]), "lr must be finite and at least 0"),
        (lambda: tr.MAML(contracts.net(), lr={"head": 1.0}), "no rate for .*body.weight"),
        (lambda: tr.MAML(contracts.net(), lr={"": 1.0, "hed": 1.0}), "no parameter's name begins"),
        (lambda: tr.MetaSGD(contracts.net(), per="number"), "per must be 'element' or 'layer'"),
        (lambda: tr.ANIL(contracts.net(), head="top"), "head must name a part .*'body', 'head'"),
        (lambda: tr.ANIL(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "1"), "no trainable parameter"),
        (lambda: tr.ANIL(tied("weight"), "1"), r"the head's \['weight'\] are shared with the body"),
        (
            lambda: tr.TNet(tied("bias")),
            "TNet cannot transform '1', whose bias another layer shares",
        ),
        (lambda: tr.TNet(nn.Sequential(nn.ReLU())), "found no nn.Linear"),
        (
            lambda: tr.MAML(contracts.net(), engine="fast").adapt(BATCH.support, mse_loss),
            "engine must be",
        ),
        (
            lambda: tr.ANIL(Scaled().double(), "head").adapt(BATCH.support, mse_loss),
            "must be the last thing the model does",
        ),
        (
            lambda: tr.ProtoNet(contracts.net(), engine="loop").adapt(
                tr.Samples(BATCH.support.x, torch.zeros(4, 5).long()), contracts.cross_entropy
            ),
            "ProtoNet needs the number of classes",
        ),
        (
            lambda: tr.MAML(contracts.net()).adapt(BATCH.support, mse_loss)(BATCH.query.x[0]),
            r"x must be \[tasks, queries, ...\] with tasks = 4",
        ),
        (
            lambda: tr.MAML(contracts.net(), engine="batched").adapt(
                BATCH.support, lambda p, y: (p - y).square()
            ),
            "loss_fn must return a scalar",
        ),
        (
            lambda: tr.MAML(contracts.net(), engine="loop").adapt(
                BATCH.support, lambda p, y: (p - y).detach().mean()
            ),
            "depends on none of the adapted parameters",
        ),
    ],
)
def test_errors_name_argument_value_and_remedy(make, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError), match=match):
        make()


def test_a_rate_belongs_to_whole_names_only() -> None:
    """Layer 10 is not below layer 1."""
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(11)))
    learner = tr.MAML(model, lr={"": 0.1, "1": 0.5, "10.bias": 0.7})
    sizes = learner.step_sizes({}, learner.trainable())
    assert sizes["model.1.weight"] == 0.5
    assert sizes["model.10.weight"] == 0.1
    assert sizes["model.10.bias"] == 0.7


def test_adapted_models_take_samples_with_their_mask() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    tasks = contracts.tasks_of(contracts.regression_batch())
    ragged = tr.TaskBatch.from_tasks(
        [(s, (x[: 3 + i], y[: 3 + i])) for i, (s, (x, y)) in enumerate(tasks)]
    )
    adapted = tr.MAML(model, engine="loop").adapt(ragged.support, mse_loss)
    close(adapted(ragged.query), adapted(ragged.query.x, ragged.query.mask), 0.0)
    close(adapted.cross(ragged.query), adapted.cross(ragged.query.x, ragged.query.mask), 0.0)
    assert not torch.equal(adapted(ragged.query)[0, :3], adapted(ragged.query.x)[0, :3])


def test_steps_are_checked_when_adapting() -> None:
    learner = tr.MAML(contracts.net())
    for steps in (-1, 2.5):
        with pytest.raises((ValueError, TypeError), match="steps"):
            learner.adapt(contracts.regression_batch().support, mse_loss, steps=steps)


def unfrozen(model: nn.Sequential) -> None:
    model[0].requires_grad_(True)


def lengthened(model: nn.Sequential) -> None:
    model.append(nn.Linear(1, 1).double())


@pytest.mark.parametrize("engine", EAGER)
@pytest.mark.parametrize(
    ("change", "names"), [(unfrozen, "'0.weight', '0.bias'"), (lengthened, "'2.weight', '2.bias'")]
)
def test_metasgd_names_parameters_that_came_after_its_rates(
    engine: str, change, names: str
) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    model[0].requires_grad_(False)
    learner = tr.MetaSGD(model, engine=engine)
    change(model)
    x, y = torch.rand(2, 3, 2).double(), torch.rand(2, 3, 1).double()
    with pytest.raises(ValueError, match=rf"no learned rate for \[{names}\].* Build MetaSGD"):
        learner.adapt((x, y), mse_loss)


def old_style(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "computed",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        old_style,
        lambda layer: prune.identity(layer, "weight"),
    ],
)
def test_tnet_names_a_layer_whose_weight_is_computed(computed) -> None:
    model = nn.Sequential(nn.Linear(2, 3), computed(nn.Linear(3, 1)))
    with pytest.raises(ValueError, match=r"cannot transform '1': its weight is no parameter.*MAML"):
        tr.TNet(model)
