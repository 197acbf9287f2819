"""The sketched update against `reference`, its hash against what a hash must be, and its place in a step."""

import math

import contracts
import pytest
import reference
import torch
from contracts import BATCHED_FIRST, LEARNERS, close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import mse_loss
from torch.testing import assert_close

import trlearner as tr
from trlearner.encoders.update import _mix, buckets_and_signs, count_sketch

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = 1e-9
DIFFERENCES = 1e-6
DIM, SEED = 8, 5

CELLS = [(name, first) for name in LEARNERS for first in (False, True)]


def regularizer(dim: int = DIM, detach: bool = False, **options: object) -> tr.TRLearner:
    encoder = tr.UpdateEncoder(dim=dim, seed=SEED, detach=detach)
    options = {"normalize": "softmax", "temperature": 0.5, **options}
    return tr.TRLearner(encoder=encoder, heads=3, lam=0.7, **options).double()


def truth(
    name: str, made: tr.Learner, reg: tr.TRLearner, batch: tr.TaskBatch, first_order: bool = False
) -> contracts.Truth:
    """The regularized meta-loss by the loops of `reference`."""
    params = dict(made.model.named_parameters())
    adapt_task, predict, _ = contracts.learner_by_formula(
        name, made, params, reg.loss_fn, first_order
    )
    names = reference.head_names(params) if name == "anil" else list(params)

    def embed(task: reference.Task) -> Tensor:
        e = reg.encoder
        found = reference.update_embedding(adapt_task(task[0]), params, names, e.dim, e.seed)
        return found.detach() if e.detach else found

    tasks = contracts.tasks_of(batch)
    options = {"normalize": reg.options.normalize, "temperature": reg.temperature}
    found = reference.meta_loss(
        tasks, adapt_task, predict, embed, reg.relation.weight, reg.lam, reg.loss_fn, **options
    )
    return contracts.Truth(*found)


def agree(found: tr.Output, wanted: contracts.Truth, *modules: nn.Module) -> None:
    for name in ("loss", "task_loss", "relation_loss", "relations", "weights"):
        close(getattr(found, name), getattr(wanted, name), TIGHT)
    a, b = (contracts.gradients(out.loss, *modules) for out in (found, wanted))
    for key in b:
        close(a[key], b[key], TIGHT)


def unequal(tasks: int = 4) -> tr.TaskBatch:
    """Task i lacks i of its support samples."""
    whole = contracts.tasks_of(contracts.regression_batch(tasks=tasks))
    return tr.TaskBatch.from_tasks(
        [((x[: 5 - i], y[: 5 - i]), query) for i, ((x, y), query) in enumerate(whole)]
    )


# ---- the hash -----------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 100), st.integers(-(2**40), 2**70))
def test_buckets_and_signs_equal_the_reference(coordinates: int, dim: int, seed: int) -> None:
    buckets, signs = buckets_and_signs(coordinates, dim, seed)
    wanted = [reference.bucket_and_sign(p, dim, seed) for p in range(coordinates)]
    assert list(zip(buckets.tolist(), signs.tolist(), strict=True)) == wanted


def test_large_coordinates_do_not_overflow() -> None:
    """The largest products that there are, a little below 2^63."""
    largest = torch.tensor([2**32 - 1, 2**32 - 2, 2**31, 2**31 - 1])
    assert _mix(largest).tolist() == [reference.mixed(p) for p in largest.tolist()]
    assert (2**32 - 1) * 0x735A2D97 < 2**63


def test_the_hash_is_the_same_in_a_graph_and_under_vmap() -> None:
    v = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = count_sketch(v, 7, 1)
    assert wanted.abs().min() > 0
    graph = make_fx(lambda t: count_sketch(t, 7, 1), tracing_mode="fake")(v)
    assert_close(graph(v), wanted, **EXACT)
    assert not list(graph.buffers()) and not list(graph.parameters())
    rows = torch.vmap(lambda row: count_sketch(row[None], 7, 1)[0])(v)
    assert_close(rows, wanted, **EXACT)


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**40])
@pytest.mark.parametrize("dim", [2, 7, 64])
def test_buckets_and_signs_are_balanced(seed: int, dim: int) -> None:
    n = 200_000
    buckets, signs = buckets_and_signs(n, dim, seed)
    assert set(signs.tolist()) == {-1, 1}
    assert buckets.min() == 0 and buckets.max() == dim - 1
    # Five standard deviations of what coins and dice would give.
    cells = torch.bincount(2 * buckets + (signs > 0), minlength=2 * dim).double()
    expected = n / (2 * dim)
    chi = ((cells - expected) ** 2 / expected).sum().item()
    freedom = 2 * dim - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)
    assert abs(signs.double().mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 32, 40, 64, 1600, 65536])
def test_neighbours_are_uncorrelated(lag: int) -> None:
    """Coordinates apart by 1, by the width of a layer, by a power of two."""
    n, dim = 200_000, 16
    buckets, signs = buckets_and_signs(n + lag, dim, seed=3)
    assert abs((signs[lag:] * signs[:-lag]).double().mean()) < 5 / math.sqrt(n)
    same = (buckets[lag:] == buckets[:-lag]).double().mean().item()
    assert abs(same - 1 / dim) < 5 * math.sqrt(1 / dim / n)


@pytest.mark.full
def test_two_coordinates_are_uncorrelated_over_seeds() -> None:
    """Pairwise independence, which unbiasedness rests on, for every pair of the first forty."""
    seeds, n, dim = 4000, 40, 4
    drawn = [buckets_and_signs(n, dim, seed) for seed in range(seeds)]
    buckets, signs = (torch.stack(rows).double() for rows in zip(*drawn, strict=True))
    pairs = ~torch.eye(n, dtype=torch.bool)
    # 1560 pairs: six standard deviations are as good as never reached by chance.
    assert (signs.T @ signs / seeds)[pairs].abs().max() < 6 / math.sqrt(seeds)
    assert signs.mean(0).abs().max() < 6 / math.sqrt(seeds)
    same = torch.stack([(buckets == buckets[:, p : p + 1]).double().mean(0) for p in range(n)])
    assert (same[pairs] - 1 / dim).abs().max() < 6 * math.sqrt(1 / dim / seeds)
    both = torch.stack(
        [
            (signs * signs[:, p : p + 1] * (buckets == buckets[:, p : p + 1])).mean(0)
            for p in range(n)
        ]
    )
    assert both[pairs].abs().max() < 6 * math.sqrt(1 / dim / seeds)


# ---- the sketch ---------------------------------------------------------------------------------


def vectors(n: int, coordinates: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    common = torch.randn(coordinates, generator=g, dtype=torch.float64)
    share = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    # Heavy tails, as gradients have.
    noise = torch.randn(n, coordinates, generator=g, dtype=torch.float64) ** 3 / 4
    return share * common + (1 - share.abs()) * noise


@pytest.mark.full
def test_inner_products_are_unbiased_over_seeds() -> None:
    v, seeds, dim = vectors(5, 60), 3000, 6
    sketches = [count_sketch(v, dim, seed) for seed in range(seeds)]
    products = torch.stack([s @ s.T for s in sketches])
    error = products.std(0) / math.sqrt(seeds)
    assert ((products.mean(0) - v @ v.T).abs() < 5 * error).all()
    # Var = 1/dim sum_{p != q} (x_p^2 y_q^2 + x_p y_p x_q y_q), the count-sketch's own.
    squares, both = v.square(), v[:, None] * v[None]
    variance = (
        squares.sum(1)[:, None] * squares.sum(1) + both.sum(2) ** 2 - 2 * both.square().sum(2)
    )
    assert_close(products.var(0), variance / dim, rtol=0.25, atol=1e-9)


@pytest.mark.parametrize("coordinates", [500, 20_000])
def test_cosines_approximate_those_of_the_raw_updates(coordinates: int) -> None:
    v, dim = vectors(8, coordinates), 1024
    raw, sketched = (nn.functional.normalize(rows, dim=1) for rows in (v, count_sketch(v, dim, 1)))
    assert (sketched @ sketched.T - raw @ raw.T).abs().max() < 4 / math.sqrt(dim)


def test_half_precision_is_summed_in_single() -> None:
    v = torch.ones(2, 5000, dtype=torch.bfloat16)
    assert_close(count_sketch(v, 1), count_sketch(v.float(), 1), **EXACT)


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
def test_masks_are_those_of_the_adaptation(engine: str) -> None:
    learner, reg, batch = (
        contracts.learner("maml", contracts.net(), engine),
        regularizer(),
        unequal(),
    )
    assert batch.support.mask is not None
    agree(reg(learner, batch), truth("maml", learner, reg, batch), learner, reg)


@pytest.mark.full
@pytest.mark.parametrize("name", LEARNERS)
def test_meta_gradient_equals_finite_differences(name: str) -> None:
    model, batch = contracts.net(hidden=3), contracts.regression_batch(tasks=3)
    learner, reg = contracts.learner(name, model, "batched"), regularizer()

    def loss() -> Tensor:
        with torch.no_grad():
            return reg(learner, batch).loss

    found = contracts.gradients(reg(learner, batch).loss, learner, reg)
    named = {f"{i}.{n}": p for i, m in enumerate((learner, reg)) for n, p in m.named_parameters()}
    for key, p in named.items():
        close(contracts.along(found[key]), contracts.slopes(loss, p), DIFFERENCES)


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
def test_first_order_embeddings_teach_the_start_nothing(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine, first_order=True)
    batch = contracts.regression_batch()
    a, b = (
        contracts.gradients(regularizer(detach=d)(learner, batch).loss, learner)
        for d in (False, True)
    )
    for key in a:
        close(a[key], b[key], 1e-12)


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
def test_zero_steps_relate_nothing_and_stay_finite(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine, steps=0)
    reg = regularizer(normalize="sum")
    out = reg(learner, contracts.regression_batch())
    assert (out.relations == 0).all()
    close(out.weights, (1 - torch.eye(4).double()) / 3, 1e-12)
    assert all(
        torch.isfinite(g).all() for g in contracts.gradients(out.loss, learner, reg).values()
    )


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_only_what_adapts_is_sketched(engine: str) -> None:
    """Frozen parameters do not adapt; those that the loss does not use stay where they are."""
    model, batch = contracts.net(), contracts.regression_batch()
    model.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    model.body.bias.requires_grad_(False)
    learner, reg = contracts.learner("maml", model, engine), regularizer()
    params = {n: p for n, p in model.named_parameters() if n != "body.bias"}
    adapted = learner.adapt(batch.support, mse_loss)
    rows = [
        reference.update_embedding(
            {n: adapted.fast[f"model.{n}"][i] for n in params}, params, params, DIM, SEED
        )
        for i in range(4)
    ]
    wanted = reference.relation_matrix(rows, reg.relation.weight)
    close(reg(learner, batch).relations, wanted.detach(), TIGHT)


@pytest.mark.slow
def test_inductor_compiles_the_same_hash() -> None:
    batch, model, reg = contracts.regression_batch(), contracts.net(), regularizer()
    outs = [reg(contracts.learner("maml", model, e), batch) for e in ("compiled", "batched")]
    close(outs[0].relations, outs[1].relations, TIGHT)
    a, b = (contracts.gradients(out.loss, model) for out in outs)
    for key in b:
        close(a[key], b[key], TIGHT)


@pytest.mark.parametrize("engine", ["batched", *contracts.later("loop", "traced")])
def test_a_learner_of_ones_own_that_moves_a_buffer(engine: str) -> None:
    class Shift(tr.GradientLearner):
        """Adapts one offset, which is a buffer."""

        def __init__(self) -> None:
            super().__init__(contracts.net(), steps=1, engine=engine)
            self.register_buffer("offset", torch.zeros(3, dtype=torch.float64))

        def start(self, state: tr.types.State) -> tr.types.Fast:
            return {"offset": state["offset"]}

        def step_sizes(self, state: tr.types.State, names: list[str]) -> dict[str, float]:
            return {"offset": 0.5}

        def predict(self, state: tr.types.State, fast: tr.types.Fast, features: Tensor) -> Tensor:
            return super().predict(state, {}, features) + fast["offset"]

    learner, reg, batch = Shift(), regularizer(), contracts.regression_batch()
    offsets = learner.adapt(batch.support, mse_loss).fast["offset"]
    start = {"offset": learner.offset}
    rows = [reference.update_embedding({"offset": o}, start, start, DIM, SEED) for o in offsets]
    wanted = reference.relation_matrix(rows, reg.relation.weight)
    close(reg(learner, batch).relations, wanted.detach(), TIGHT)


def test_relations_are_the_cosines_of_the_raw_updates_but_for_the_sketch() -> None:
    batch = contracts.regression_batch()
    learner = contracts.learner("maml", contracts.net(), "batched")
    reg = regularizer(dim=4096)
    reg.relation.weight.data.fill_(1.0)
    fast = learner.adapt(batch.support, mse_loss).fast
    raw = torch.cat(
        [(fast[n] - p).flatten(1) for n, p in learner.start(learner.state()).items()], 1
    )
    raw = nn.functional.normalize(raw.detach(), dim=1)
    close(reg(learner, batch).relations, raw @ raw.T, 0.05)


def test_it_tells_tasks_apart_that_share_their_inputs() -> None:
    batch = contracts.regression_batch()
    x, y = batch.support.x[:1].expand(4, -1, -1), batch.support.y
    shared = tr.TaskBatch((x, torch.stack([y[0], y[0], -3 * y[0], y[1]])), batch.query)
    out = regularizer()(contracts.learner("maml", contracts.net(), "batched"), shared)
    assert out.relations[0, 1] > 1 - 1e-9
    assert out.relations[0, 2] < 0.99 and out.relations[0, 3] < 0.99


def test_the_seed_changes_the_sketch_but_the_same_one_repeats_it() -> None:
    batch, learner = (
        contracts.regression_batch(),
        contracts.learner("maml", contracts.net(), "loop"),
    )

    def relations(seed: int) -> Tensor:
        return (
            tr.TRLearner(encoder=tr.UpdateEncoder(4, seed=seed)).double()(learner, batch).relations
        )

    assert torch.equal(relations(1), relations(1))
    assert (relations(1) - relations(2)).abs().max() > 1e-2


# ---- what is kept, skipped and refused ----------------------------------------------------------


def test_nothing_is_stored() -> None:
    reg = regularizer()
    assert not list(reg.encoder.parameters()) and not list(reg.encoder.buffers())
    assert not reg.encoder.state_dict()
    learner, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    other = regularizer()
    other.relation.weight.data += 1
    other.load_state_dict(reg.state_dict())
    assert_close(other(learner, batch).loss, reg(learner, batch).loss, **EXACT)


def test_lambda_zero_asks_nothing_of_the_learner() -> None:
    batch = contracts.class_batch()
    protonet = contracts.learner("protonet", contracts.net(), "batched")
    out = regularizer(loss_fn=contracts.cross_entropy)
    out.lam = 0.0
    assert torch.isfinite(out(protonet, batch).loss)


@pytest.mark.unchecked
@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_a_learner_that_descends_no_gradient_is_refused(engine: str) -> None:
    protonet = contracts.learner("protonet", contracts.net(), engine)
    message = r"ProtoNet descends no gradient. Use InputEncoder, LabelledEncoder or FunctionEncoder"
    with pytest.raises(TypeError, match=message):
        regularizer(loss_fn=contracts.cross_entropy)(protonet, contracts.class_batch())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"dim": 2.5}, "dim must be a whole number of at least 1, got 2.5"),
        ({"dim": 4, "seed": "x"}, "seed must be a whole number, got 'x'"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tr.UpdateEncoder(**options)


@pytest.mark.unchecked
def test_classes_are_aligned_by_their_mean_inputs() -> None:
    """As `LabelledEncoder` without an extractor has them."""
    x = torch.rand(3, 6, 2)
    y = (torch.arange(6) % 2).expand(3, 6)
    batch = tr.TaskBatch((x, y), (x, y), ways=2)
    models = tr.MAML(nn.Linear(2, 2), steps=1).adapt(batch.support, contracts.cross_entropy)
    found = tr.UpdateEncoder(4).prototypes({}, batch, models)
    wanted = [torch.stack([x[i][y[i] == c].mean(0) for c in range(2)]) for i in range(3)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_a_parameter_that_is_a_single_number_is_sketched() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x)

    x, y = torch.rand(3, 4, 2), torch.rand(3, 4, 1)
    for engine in ("loop", "batched"):
        learner = tr.MAML(Scaled(), lr=0.1, steps=1, engine=engine)
        reg = tr.TRLearner(encoder=tr.UpdateEncoder(dim=4))
        out = reg(learner, tr.TaskBatch((x, y), (x, y)))
        fast, start = learner.adapt((x, y), mse_loss).fast, learner.state()
        moved = torch.cat([(fast[n] - t).reshape(3, -1) for n, t in start.items()], 1)
        wanted = count_sketch(moved.detach(), 4)
        assert torch.allclose(out.embeddings, wanted, rtol=0.0, atol=1e-6)
