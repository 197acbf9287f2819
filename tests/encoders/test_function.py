"""What adapted models say about shared inputs, against `reference`, on every learner and engine."""

import copy
import pickle

import contracts
import pytest
import reference
import torch
from contracts import BATCHED_FIRST, INPUTS, LEARNERS, OUTPUTS, close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

import trlearner as tr

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = 1e-9
DIFFERENCES = 1e-6
PROBES = 4

CELLS = [(name, first) for name in LEARNERS for first in (False, True)]


def probe(*shape: int, seed: int = 9) -> Tensor:
    shape = shape or (PROBES, INPUTS)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regularizer(
    inputs: Tensor | None = None, outputs: int = OUTPUTS, detach: bool = False, **options: object
) -> tr.TRLearner:
    inputs = probe() if inputs is None else inputs
    encoder = tr.FunctionEncoder(inputs, outputs=outputs, detach=detach)
    options = {"normalize": "softmax", "temperature": 0.5, **options}
    return tr.TRLearner(encoder=encoder, heads=3, lam=0.7, **options).double()


def truth(
    name: str,
    made: tr.Learner,
    reg: tr.TRLearner,
    batch: tr.TaskBatch,
    first_order: bool = False,
    kind: str = "values",
) -> contracts.Truth:
    """The regularized meta-loss by the loops of `reference`."""
    params = dict(made.model.named_parameters())
    adapt_task, predict, _ = contracts.learner_by_formula(
        name, made, params, reg.loss_fn, first_order
    )

    def embed(task: reference.Task) -> Tensor:
        adapted = adapt_task(task[0])
        found = reference.function_embedding(lambda x: predict(adapted, x), reg.encoder.probe)
        return found.detach() if reg.encoder.detach else found

    options = {"kind": kind, "normalize": reg.options.normalize, "temperature": reg.temperature}
    found = reference.meta_loss(
        contracts.tasks_of(batch),
        adapt_task,
        predict,
        embed,
        reg.relation.weight,
        reg.lam,
        reg.loss_fn,
        **options,
    )
    return contracts.Truth(*found)


def agree(found: tr.Output, wanted: contracts.Truth | tr.Output, *modules: nn.Module) -> None:
    for name in ("loss", "task_loss", "relation_loss", "relations", "weights"):
        close(getattr(found, name), getattr(wanted, name), TIGHT)
    a, b = (contracts.gradients(out.loss, *modules) for out in (found, wanted))
    for key in b:
        close(a[key], b[key], TIGHT)


# ---- in a meta-step -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize(("name", "first_order"), CELLS)
def test_engine_equals_reference(engine: str, name: str, first_order: bool) -> None:
    model, batch = contracts.net(), contracts.regression_batch()
    learner = contracts.learner(name, model, engine, first_order=first_order)
    reg = regularizer()
    out, wanted = reg(learner, batch), truth(name, learner, reg, batch, first_order)
    assert out.engine == engine
    agree(out, wanted, learner, reg)
    # The relations tell these tasks apart, or nothing was compared.
    assert wanted.relations.std() > 1e-2


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_classification_equals_reference(engine: str, name: str) -> None:
    model, batch = contracts.net(), contracts.class_batch()
    learner = contracts.learner(name, model, engine)
    reg = regularizer(loss_fn=contracts.cross_entropy)
    agree(reg(learner, batch), truth(name, learner, reg, batch, kind="logits"), learner, reg)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_masks_are_those_of_the_adaptation(engine: str) -> None:
    whole = contracts.tasks_of(contracts.regression_batch())
    batch = tr.TaskBatch.from_tasks(
        [((x[: 5 - i], y[: 5 - i]), query) for i, ((x, y), query) in enumerate(whole)]
    )
    assert batch.support.mask is not None
    learner, reg = contracts.learner("maml", contracts.net(), engine), regularizer()
    agree(reg(learner, batch), truth("maml", learner, reg, batch), learner, reg)


@pytest.mark.full
@pytest.mark.parametrize("name", LEARNERS)
def test_meta_gradient_equals_finite_differences(name: str) -> None:
    model, batch = contracts.net(hidden=3), contracts.regression_batch(tasks=3)
    learner, reg = contracts.learner(name, model, "batched"), regularizer(probe(2, INPUTS))

    def loss() -> Tensor:
        with torch.no_grad():
            return reg(learner, batch).loss

    found = contracts.gradients(reg(learner, batch).loss, learner, reg)
    named = {f"{i}.{n}": p for i, m in enumerate((learner, reg)) for n, p in m.named_parameters()}
    for key, p in named.items():
        close(contracts.along(found[key]), contracts.slopes(loss, p), DIFFERENCES)


@pytest.mark.full
def test_protonet_gradient_equals_finite_differences() -> None:
    model, batch = contracts.net(hidden=3), contracts.class_batch(tasks=3)
    learner = contracts.learner("protonet", model, "batched")
    reg = regularizer(loss_fn=contracts.cross_entropy)

    def loss() -> Tensor:
        with torch.no_grad():
            return reg(learner, batch).loss

    found = contracts.gradients(reg(learner, batch).loss, learner)
    for name, p in learner.named_parameters():
        close(contracts.along(found[f"0.{name}"]), contracts.slopes(loss, p), DIFFERENCES)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_detach_cuts_the_way_through_the_embeddings_only(engine: str) -> None:
    batch = contracts.regression_batch()
    learner = contracts.learner("maml", contracts.net(), engine)
    cut, whole = regularizer(detach=True), regularizer()
    out = cut(learner, batch)
    agree(out, truth("maml", learner, cut, batch), learner, cut)
    close(out.loss, whole(learner, batch).loss, TIGHT)
    a, b = (contracts.gradients(reg(learner, batch).loss, learner, reg) for reg in (cut, whole))
    close(a["1.relation.weight"], b["1.relation.weight"], TIGHT)
    assert a["1.relation.weight"].abs().max() > 1e-6
    assert (a["0.model.body.weight"] - b["0.model.body.weight"]).abs().max() > 1e-6


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_permuting_tasks_permutes_the_relations(engine: str) -> None:
    learner, reg = contracts.learner("maml", contracts.net(), engine), regularizer()
    batch, order = contracts.regression_batch(), torch.tensor([2, 0, 3, 1])
    one, other = reg(learner, batch), reg(learner, batch[order])
    close(other.loss, one.loss, 1e-12)
    close(other.relations, one.relations[order][:, order], 1e-12)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_without_gradients(engine: str) -> None:
    learner, reg = contracts.learner("maml", contracts.net(), engine), regularizer()
    batch = contracts.regression_batch()
    with torch.no_grad():
        found = reg(learner, batch)
    assert not found.loss.requires_grad
    close(found.loss, reg(learner, batch).loss.detach(), 1e-12)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_zero_steps_make_all_tasks_one(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine, steps=0)
    out = regularizer()(learner, contracts.regression_batch())
    close(out.relations, torch.ones(4, 4, dtype=torch.float64), 1e-9)


def test_the_embedding_is_what_adapted_models_predict() -> None:
    batch = contracts.regression_batch()
    learner, reg = contracts.learner("tnet", contracts.net(), "batched"), regularizer()
    adapted = learner.adapt(batch.support, mse_loss)
    wanted = adapted(probe().expand(4, -1, -1)).flatten(1)
    found = reg.encoder.encode({"probe": reg.encoder.probe}, batch, adapted)
    assert found.shape == (4, reg.encoder.dim) == (4, PROBES * OUTPUTS)
    close(found, wanted, 1e-12)


@pytest.mark.full
def test_the_probe_is_an_input_of_the_graph() -> None:
    """A probe that the graph had frozen would go unnoticed when it changes."""
    learner, reg = contracts.learner("maml", contracts.net(), "traced"), regularizer()
    twin, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    before = reg(learner, batch).relations
    reg.encoder.probe.copy_(probe(seed=1))
    after = reg(learner, batch).relations
    close(after, reg(twin, batch).relations, TIGHT)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@given(shape=st.sampled_from([(), (1,), (2, 2)]), probes=st.integers(2, 3))
def test_predictions_of_any_shape_are_flattened(
    engine: str, shape: tuple[int, ...], probes: int
) -> None:
    width = int(torch.tensor(shape).prod()) if shape else 1
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.Unflatten(1, shape) if shape else nn.Flatten(0))
    model.double()
    x, y = probe(3, 5, 2, seed=1), probe(3, 5, *shape, seed=2)
    learner = tr.MAML(model, lr=0.1, steps=1, engine=engine)
    inputs = probe(probes, 2)
    reg = regularizer(inputs, outputs=width)
    adapted = learner.adapt((x, y), mse_loss)
    rows = adapted(inputs.expand(3, -1, -1)).reshape(3, -1)
    wanted = reference.relation_matrix(rows, reg.relation.weight)
    out = reg(learner, tr.TaskBatch((x, y), (x, y)))
    close(out.relations, wanted.detach(), TIGHT)


# ---- models that are hard to run ----------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("engine", ["higher", "loop"])
def test_a_model_that_vmap_cannot_run(engine: str) -> None:
    torch.manual_seed(0)
    model = Recurrent().double()
    learner = tr.MAML(model, lr=0.1, steps=1, engine=engine)
    x, y, inputs = probe(3, 5, 4, 2, seed=1), probe(3, 5, 1, seed=2), probe(2, 4, 2)
    reg = regularizer(inputs, outputs=1)
    out = reg(learner, tr.TaskBatch((x, y), (x, y)))
    adapted = learner.adapt((x, y), mse_loss)
    rows = adapted(inputs.expand(3, -1, -1, -1)).flatten(1)
    close(out.relations, reference.relation_matrix(rows, reg.relation.weight).detach(), TIGHT)
    assert contracts.gradients(out.loss, learner)["0.model.lstm.weight_hh_l0"].abs().max() > 0


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_batchnorm_sees_the_probe_as_one_batch(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    learner = tr.MAML(model, lr=0.1, steps=1, engine=engine)
    x, y = probe(3, 5, 2, seed=1), probe(3, 5, 1, seed=2)
    reg = regularizer(probe(6, 2), outputs=1)
    fast = learner.adapt((x, y), mse_loss).fast
    rows = []
    for i in range(3):
        w = {n.removeprefix("model."): t[i] for n, t in fast.items()}
        h = probe(6, 2) @ w["0.weight"].T + w["0.bias"]
        h = (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-5)
        h = torch.tanh(h * w["1.weight"] + w["1.bias"])
        rows.append((h @ w["3.weight"].T + w["3.bias"]).flatten())
    wanted = reference.relation_matrix(rows, reg.relation.weight)
    close(reg(learner, tr.TaskBatch((x, y), (x, y))).relations, wanted.detach(), TIGHT)
    assert model[1].num_batches_tracked == 0


@pytest.mark.full
@pytest.mark.parametrize("pair", [("higher", "loop"), ("batched", "traced")])
def test_random_layers_draw_alike_where_engines_do(pair: tuple[str, str]) -> None:
    outs = []
    for engine in pair:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        learner, reg = tr.MAML(model, lr=0.1, steps=1, engine=engine), regularizer()
        reg(learner, contracts.regression_batch())
        torch.manual_seed(1)
        outs.append(reg(learner, contracts.regression_batch()))
    close(outs[0].loss, outs[1].loss, TIGHT)
    close(outs[0].relations, outs[1].relations, TIGHT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_what_tasks_share_runs_once(engine: str) -> None:
    """ANIL's body sees the probe once, not once for each task."""
    model, batch = contracts.net(), contracts.regression_batch()
    learner = contracts.learner("anil", model, engine)
    reg = regularizer()
    learner.check(batch.support, mse_loss)
    seen: list[int] = []
    model.body.register_forward_hook(lambda module, x, y: seen.append(len(x[0])))
    reg(learner, batch)
    assert seen.count(PROBES) == 1


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_the_models_are_asked_by_the_engine_that_adapted_them(engine: str) -> None:
    model, reg = contracts.net(), regularizer()
    learner = contracts.learner("maml", model, engine)
    seen: list[int] = []
    model.head.register_forward_hook(lambda module, x, y: seen.append(len(x[0])))
    reg(learner, contracts.regression_batch())
    assert seen.count(PROBES) == (1 if engine in ("batched", "traced") else contracts.TASKS)


# ---- what is kept, skipped and refused ----------------------------------------------------------


def test_the_probe_is_saved_and_moves_along() -> None:
    reg = regularizer()
    assert set(reg.state_dict()) >= {"encoder.probe"}
    assert not list(reg.encoder.parameters())
    assert reg.float().encoder.probe.dtype == torch.float32
    other = regularizer(probe(seed=1))
    learner, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    reg = regularizer()
    assert (other(learner, batch).relations - reg(learner, batch).relations).abs().max() > 1e-3
    other.load_state_dict(reg.state_dict())
    assert_close(other(learner, batch).relations, reg(learner, batch).relations, **EXACT)


def test_a_probe_that_wants_a_gradient_gets_none() -> None:
    encoder = tr.FunctionEncoder(probe().requires_grad_(), outputs=OUTPUTS)
    assert not encoder.probe.requires_grad


def test_lambda_zero_never_asks() -> None:
    reg = regularizer()
    reg.lam, reg.encoder.encode, reg.encoder.prepare = 0.0, None, None  # would raise if called
    out = reg(contracts.learner("maml", contracts.net(), "batched"), contracts.regression_batch())
    assert torch.isfinite(out.loss)


@pytest.mark.unchecked
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_the_announced_width_must_be_right(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine)
    message = "outputs must be the width of a prediction, which is 3, got 1. Pass outputs=3"
    with pytest.raises(ValueError, match=message):
        regularizer(outputs=1)(learner, contracts.regression_batch())


@pytest.mark.unchecked
@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize(
    ("given_probe", "got"),
    [
        (torch.ones(7), r"\[7\] of torch.float64"),
        (torch.ones(7, 2, 1), r"\[7, 2, 1\] of torch.float64"),
        (torch.ones(7, 2, dtype=torch.int64), r"\[7, 2\] of torch.int64"),
    ],
)
def test_the_probe_must_be_like_the_samples(engine: str, given_probe: Tensor, got: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine)
    message = rf"like the samples of a batch, \[5, 2\] of torch.float64 on cpu, got {got}.*reg.to\("
    with pytest.raises(ValueError, match=message):
        regularizer(given_probe)(learner, contracts.regression_batch())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": [1.0]}, r"probe must be a tensor of inputs \[probes, ...\].*got list"),
        ({"probe": torch.ones(())}, r"probe must be a tensor .* got \[\]"),
        ({"probe": torch.ones(0, 2)}, r"at least one, got \[0, 2\].*linspace"),
        ({"probe": torch.ones(3, 0)}, r"at least one, got \[3, 0\].*linspace"),
        (
            {"probe": torch.tensor([[1.0], [float("nan")], [float("inf")]])},
            r"probe must be finite, got NaN or infinity in the probes \[1, 2\]",
        ),
        ({"probe": torch.ones(2, 1), "outputs": 0}, "outputs must be a whole number .* got 0"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tr.FunctionEncoder(**options)


@pytest.mark.unchecked
@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_a_probe_of_another_width_is_refused(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine)
    message = r"model takes, .* got \[7, 3\] of torch.float64 on cpu; the model said: .*shape of a"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            regularizer(torch.ones(7, 3).double())(learner, contracts.regression_batch())


def test_a_model_may_take_a_probe_of_another_size_than_samples() -> None:
    pool = torch.nn.Sequential(torch.nn.Unflatten(1, (1, -1)), torch.nn.AdaptiveAvgPool1d(2))
    net = torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(2, contracts.OUTPUTS))
    learner = contracts.learner("maml", net.double(), "batched")
    reg, batch = regularizer(torch.ones(7, 8).double()), contracts.regression_batch()
    wanted = reg(learner, batch).relations
    assert wanted.isfinite().all()
    calls = []
    net[-1].register_forward_hook(lambda *_: calls.append(0))
    reg.encoder.prepare(learner, batch)
    assert not calls  # it was tried once
    for twin in (copy.deepcopy(reg), pickle.loads(pickle.dumps(reg))):
        assert list(twin.encoder._takes) == []  # a copy takes no learner along
        assert_close(twin(learner, batch).relations, wanted, **EXACT)
    assert len(calls) > 2


@pytest.mark.unchecked
def test_it_has_no_prototypes() -> None:
    with pytest.raises(ValueError, match="which FunctionEncoder does not have"):
        regularizer(align="sinkhorn", loss_fn=contracts.cross_entropy)
