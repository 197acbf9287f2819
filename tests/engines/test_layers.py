"""Layers with state and layers that draw, in every engine.

Normalization, dropout, tied, frozen, unused parameters and buffers: engines agree with each other and
with loops written out here, and the user's module is afterwards what it was before.
"""

import copy

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

import trlearner as tr

ENGINES = ("higher", "loop", "batched")
BATCHED_FIRST = ("batched", *later("higher", "loop"))
EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 0.0, "atol": 1e-9}
SEEDED = {"rtol": 0.0, "atol": 1e-12}
TASKS, SUPPORT, QUERIES = 4, 5, 6
LR, STEPS = 0.1, 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draw(*shape: int) -> Tensor:
    # Each task has its own level, so that whose statistics are used makes a difference.
    level = torch.randn(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64)
    return torch.randn(*shape, dtype=torch.float64) + 2 * level


def regression(mask: Tensor | None = None, query_mask: Tensor | None = None) -> tr.TaskBatch:
    return tr.TaskBatch(
        tr.Samples(draw(TASKS, SUPPORT, 2), draw(TASKS, SUPPORT, 1), mask),
        tr.Samples(draw(TASKS, QUERIES, 2), draw(TASKS, QUERIES, 1), query_mask),
    )


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), *middle, nn.Tanh(), nn.Linear(4, 1)).double()


def maml(model: nn.Module, engine: str, **options: object) -> tr.MAML:
    return tr.MAML(model, **{"lr": LR, "steps": STEPS, "engine": engine, **options})


def regularizer(encoder: tr.Encoder | None = None, **options: object) -> tr.TRLearner:
    encoder = encoder or tr.InputEncoder(None, dim=2)
    return tr.TRLearner(encoder=encoder, heads=3, lam=0.7, **options).double()


def meta_step(
    model: nn.Module, engine: str, batch: tr.TaskBatch, encoder: tr.Encoder | None = None, **options
) -> tuple[tr.Output, dict[str, Tensor | None]]:
    """One whole step, and its gradients by name."""
    learner, reg = maml(model, engine), regularizer(encoder, **options)
    out = reg(learner, batch)
    named = [*learner.named_parameters(), *reg.named_parameters()]
    used = [(n, p) for n, p in named if p.requires_grad]
    found = torch.autograd.grad(out.loss, [p for _, p in used], allow_unused=True)
    return out, {n: g for (n, _), g in zip(used, found, strict=True)}


def agree(
    one: tuple[tr.Output, dict[str, Tensor | None]],
    other: tuple[tr.Output, dict[str, Tensor | None]],
) -> None:
    for name in ("loss", "task_loss", "relation_loss", "relations", "weights"):
        assert_close(getattr(one[0], name), getattr(other[0], name), **TIGHT)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        if gradient is None or other[1][name] is None:
            # What one engine calls unused another may call zero.
            rest = [g for g in (gradient, other[1][name]) if g is not None]
            assert all(g.abs().max() == 0 for g in rest), name
        else:
            assert_close(gradient, other[1][name], **TIGHT)


def adapt_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One task's inner loop on a copy, whose buffers may go where they like."""
    model = copy.deepcopy(model)
    fast = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for _ in range(STEPS):
        loss = F.mse_loss(functional_call(model, fast, (x,)), y)
        gradients = torch.autograd.grad(loss, list(fast.values()))
        fast = {n: p - LR * g for (n, p), g in zip(fast.items(), gradients, strict=True)}
    return fast


def predict_by_hand(model: nn.Module, fast: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(copy.deepcopy(model), fast, (x,))


def attributes(model: nn.Module) -> list[tuple[str, object]]:
    """All there is to see of every module: flags, counts of hooks, names and identities."""
    seen: list[tuple[str, object]] = []
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                value = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, set):
                value = sorted(value)
            seen.append((f"{path}.{key}", value))
    return seen


class Snapshot:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values = {n: t.clone() for n, t in model.state_dict().items()}
        self.attributes = attributes(model)

    def check(self) -> None:
        after = self.model.state_dict()
        assert list(after) == list(self.values)
        assert [n for n, t in after.items() if not torch.equal(t, self.values[n])] == []
        assert attributes(self.model) == self.attributes


# ---- BatchNorm ----------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"queries": 0.5}, {"chunk_size": 2}])
def test_engines_agree_on_batchnorm_in_training_mode(options: dict[str, object]):
    model, batch = net(nn.BatchNorm1d(4)), regression()
    before = Snapshot(model)
    found = {}
    for engine in ENGINES:
        generator = torch.Generator().manual_seed(5)
        encoder = tr.InputEncoder(model[:3], dim=4, metadata="all")
        found[engine] = meta_step(model, engine, batch, encoder, generator=generator, **options)
        assert found[engine][0].engine == engine
    agree(found["loop"], found["higher"])
    agree(found["loop"], found["batched"])
    gradients = found["loop"][1]
    # The bias before a BatchNorm is subtracted again.
    assert {n for n, g in gradients.items() if g.abs().max() < 1e-12} == {"model.0.bias"}
    before.check()
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_batchnorm_sees_one_task_at_a_time(engine: str):
    model, batch = net(nn.BatchNorm1d(4)), regression()
    before = Snapshot(model)
    adapted = maml(model, engine).adapt(batch.support, F.mse_loss)
    own, crossed = adapted(batch.query.x), adapted.cross(batch.query.x)
    before.check()
    models = [adapt_by_hand(model, batch.support.x[j], batch.support.y[j]) for j in range(TASKS)]
    rows = [[predict_by_hand(model, fast, x) for x in batch.query.x] for fast in models]
    wanted = torch.stack([torch.stack(row) for row in rows])
    assert_close(crossed, wanted, **TIGHT)
    assert_close(own, wanted[range(TASKS), range(TASKS)], **TIGHT)
    together = batch.query.x.flatten(0, 1)
    mixed = torch.stack([predict_by_hand(model, fast, together) for fast in models])
    assert (mixed.unflatten(1, (TASKS, QUERIES)) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("kind", ["anil", "tnet", "protonet", "metasgd"])
def test_every_learner_leaves_the_module_as_it_was(engine: str, kind: str):
    model = net(nn.BatchNorm1d(4), nn.Dropout(0.3))
    model[3].eval()  # a mixture of modes, which has to be there afterwards
    options = {"lr": LR, "steps": STEPS, "engine": engine}
    batch, loss_fn = regression(), F.mse_loss
    if kind == "protonet":
        y = torch.arange(SUPPORT).repeat(TASKS, 1) % 2
        x = batch.support.x
        batch, loss_fn = tr.TaskBatch((x, y), (x, y), ways=2), F.cross_entropy
    before = Snapshot(model)
    learner = {
        "anil": lambda: tr.ANIL(model, head="4", **options),
        "tnet": lambda: tr.TNet(model, **options).double(),
        "metasgd": lambda: tr.MetaSGD(model, **options).double(),
        "protonet": lambda: tr.ProtoNet(model, engine=engine),
    }[kind]()
    reg = regularizer(tr.InputEncoder(model[:3], dim=4), loss_fn=loss_fn)
    out = reg(learner, batch)
    out.loss.backward()
    before.check()
    assert torch.isfinite(out.loss) and model[0].weight.grad.abs().max() > 0


def test_anil_with_batchnorm_in_its_body_agrees():
    model, batch = net(nn.BatchNorm1d(4)), regression()
    found = []
    for engine in ENGINES:
        learner = tr.ANIL(model, head="3", lr=LR, steps=STEPS, engine=engine)
        found.append(regularizer(tr.InputEncoder(model[:3], dim=4))(learner, batch))
        gradients = torch.autograd.grad(found[-1].loss, list(model.parameters()))
        if len(found) == 1:
            wanted = gradients
        assert_close(gradients, wanted, **TIGHT)
        assert_close(found[-1].loss, found[0].loss, **TIGHT)


def test_batchnorm_in_evaluation_mode_uses_frozen_statistics():
    model, batch = net(nn.BatchNorm1d(4)), regression()
    for _ in range(3):
        model(draw(1, 20, 2)[0])
    model.eval()
    before = Snapshot(model)
    results = {engine: meta_step(model, engine, batch) for engine in ENGINES}
    agree(results["loop"], results["higher"])
    agree(results["loop"], results["batched"])
    models = [adapt_by_hand(model, batch.support.x[j], batch.support.y[j]) for j in range(TASKS)]
    wanted = [
        predict_by_hand(model, fast, x) for fast, x in zip(models, batch.query.x, strict=True)
    ]
    assert_close(results["loop"][0].predictions, torch.stack(wanted).detach(), **TIGHT)
    # Frozen statistics couple nothing: one sample alone is predicted as it is among others.
    alone = predict_by_hand(model, models[0], batch.query.x[0, :1])
    assert_close(results["loop"][0].predictions[0, :1], alone.detach(), **TIGHT)
    before.check()
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_statistics_that_were_never_updated_are_refused(engine: str):
    model, batch = net(nn.BatchNorm1d(4)).eval(), regression()
    learner = maml(model, engine)
    message = r"^model\.1: evaluation mode needs running statistics, .*\.train\(\).*GroupNorm"
    with pytest.raises(ValueError, match=message):
        learner.adapt(batch.support, F.mse_loss)
    with pytest.raises(ValueError, match=message):
        regularizer()(learner, batch)
    # Meta-training does not update them either, so that is still so afterwards.
    model.train()
    regularizer()(learner, batch).loss.backward()
    model.eval()
    with pytest.raises(ValueError, match=message):
        learner.adapt(batch.support, F.mse_loss)


def masks() -> tuple[Tensor, Tensor]:
    support = torch.ones(TASKS, SUPPORT, dtype=torch.bool)
    support[0, 3:] = support[2, 0] = False
    query = torch.ones(TASKS, QUERIES, dtype=torch.bool)
    query[1, 2:] = query[3, 1] = False
    return support, query


@pytest.mark.parametrize("engine", ["loop", "higher", "auto"])
def test_masks_with_batchnorm_equal_dropping(engine: str):
    model = net(nn.BatchNorm1d(4))
    support, query = masks()
    batch = regression(support, query)
    adapted = maml(model, engine).adapt(batch.support, F.mse_loss)
    assert adapted.engine == ("higher" if engine == "higher" else "loop")
    crossed = adapted.cross(batch.query.x, batch.query.mask)
    models = [adapt_by_hand(model, *batch.support.real(j)) for j in range(TASKS)]
    for j, fast in enumerate(models):
        for i in range(TASKS):
            wanted = predict_by_hand(model, fast, batch.query.real(i)[0])
            assert_close(crossed[j, i][query[i]], wanted, **TIGHT)
    own = adapted(batch.query.x, batch.query.mask)
    assert_close(own, crossed[range(TASKS), range(TASKS)], **TIGHT)
    out, _ = meta_step(model, engine, batch)
    losses = [
        F.mse_loss(predict_by_hand(model, fast, x), y)
        for fast, (x, y) in ((models[i], batch.query.real(i)) for i in range(TASKS))
    ]
    assert_close(out.task_loss, torch.stack(losses).mean().detach(), **TIGHT)


def test_masks_with_batchnorm_are_refused_by_batched():
    model = net(nn.BatchNorm1d(4))
    batch = regression(*masks())
    with pytest.raises(ValueError, match="engine='batched' cannot drop masked samples from layers"):
        maml(model, "batched").adapt(batch.support, F.mse_loss)
    # Also where only the queries are masked, which adapt() alone does not see.
    batch = regression(None, masks()[1])
    with pytest.raises(ValueError, match="engine='batched' cannot drop masked samples from layers"):
        meta_step(model, "batched", batch)


@pytest.mark.parametrize("engine", ["batched", "loop", "higher"])
def test_asking_an_adapted_model_about_masked_queries(engine: str):
    """What adapt() could not see: the mask of queries handed to the adapted model."""
    model = net(nn.BatchNorm1d(4))
    batch = regression(None, masks()[1])
    adapted = maml(model, engine).adapt(batch.support, F.mse_loss)
    x, mask = batch.query.x, batch.query.mask
    if engine == "batched":
        for call in (adapted, adapted.cross):
            with pytest.raises(ValueError, match="cannot drop masked samples"):
                call(x, mask)
        return
    models = [adapt_by_hand(model, *batch.support.real(j)) for j in range(TASKS)]
    own = adapted(x, mask)
    for i, fast in enumerate(models):
        wanted = predict_by_hand(model, fast, batch.query.real(i)[0])
        assert_close(own[i][mask[i]], wanted, **TIGHT)


def test_a_layer_of_ones_own_that_couples_samples_is_treated_alike():
    class Centred(nn.Module):
        couples_samples = True

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    model, batch = net(Centred()), regression()
    results = {engine: meta_step(model, engine, batch) for engine in ENGINES}
    agree(results["loop"], results["higher"])
    agree(results["loop"], results["batched"])
    adapted = maml(model, "batched").adapt(batch.support, F.mse_loss)
    fast = adapt_by_hand(model, batch.support.x[1], batch.support.y[1])
    wanted = predict_by_hand(model, fast, batch.query.x[2])
    assert_close(adapted.cross(batch.query.x)[1, 2], wanted, **TIGHT)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(2)])
def test_engines_agree_on_layers_that_couple_nothing(norm: nn.Module):
    middle = [norm] if not isinstance(norm, nn.InstanceNorm1d) else [
        nn.Unflatten(1, (2, 2)), norm, nn.Flatten()
    ]  # fmt: skip
    model, batch = net(*middle), regression(*masks())
    before = Snapshot(model)
    results = {engine: meta_step(model, engine, batch) for engine in ENGINES}
    agree(results["loop"], results["higher"])
    agree(results["loop"], results["batched"])
    before.check()


# ---- Dropout ------------------------------------------------------------------------------------


def test_loop_and_higher_draw_the_same_noise():
    model, batch = net(nn.Dropout(0.5)), regression()
    found = {}
    for engine in ("loop", "higher"):
        torch.manual_seed(11)
        found[engine] = meta_step(model, engine, batch, tr.InputEncoder(model[:2], dim=4))
        found[engine + " state"] = torch.get_rng_state()
    (out, gradients), (other, other_gradients) = found["loop"], found["higher"]
    assert_close(out.loss, other.loss, **SEEDED)
    assert_close(gradients, other_gradients, **SEEDED)
    assert torch.equal(found["loop state"], found["higher state"])
    torch.manual_seed(12)
    assert abs(meta_step(model, "loop", batch)[0].loss - out.loss) > 1e-3


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_noise_is_reproducible_and_moves_the_global_stream(engine: str):
    model, batch = net(nn.Dropout(0.5)), regression()
    results = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(meta_step(model, engine, batch))
        assert not torch.equal(torch.get_rng_state(), before)
    assert_close(results[0][0].loss, results[1][0].loss, **EXACT)
    assert_close(results[0][1], results[1][1], **EXACT)
    assert abs(results[2][0].loss - results[0][0].loss) > 1e-3


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_every_task_has_noise_of_its_own(engine: str):
    model = net(nn.Dropout(0.5))
    x, y = draw(1, SUPPORT, 2).expand(TASKS, -1, -1), draw(1, SUPPORT, 1).expand(TASKS, -1, -1)
    adapted = maml(model, engine).adapt((x, y), F.mse_loss)
    distances = torch.cdist(*[adapted.fast["model.0.weight"].flatten(1)] * 2)
    assert distances[~torch.eye(TASKS, dtype=torch.bool)].min() > 1e-4
    unadapted = maml(model, engine, steps=0).adapt((x, y), F.mse_loss)
    for predictions in (unadapted(x), unadapted.cross(x).flatten(0, 1)):
        assert torch.pdist(predictions.flatten(1)).min() > 1e-4


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_dropout_in_evaluation_mode_draws_nothing(engine: str):
    model, batch = net(nn.Dropout(0.5)).eval(), regression()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    out = meta_step(model, engine, batch)
    assert torch.equal(torch.get_rng_state(), before)
    agree(out, meta_step(net_like(model), "loop", batch))


def net_like(model: nn.Sequential) -> nn.Sequential:
    """The same weights by the same names, without the dropout."""
    return nn.Sequential(model[0], nn.Identity(), *model[2:])


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_chunks_draw_in_the_backward_what_they_drew_in_the_forward(engine: str, chunk: int):
    """Recomputed activations must meet the dropout masks of the first time."""
    model, batch = net(nn.Dropout(0.5)), regression()
    parameters = list(model.parameters())

    def loss() -> Tensor:
        torch.manual_seed(11)
        return regularizer(chunk_size=chunk)(maml(model, engine), batch).loss

    gradients = torch.autograd.grad(loss(), parameters)
    # A directional finite difference with the noise held fixed.
    directions = [torch.randn_like(p) for p in parameters]
    delta, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += sign * delta * d
        values.append(loss().detach())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p -= sign * delta * d
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert_close(slope, (values[0] - values[1]) / (2 * delta), rtol=1e-5, atol=1e-6)
    assert slope.abs() > 1e-3


# ---- tied, frozen and unused parameters, buffers ------------------------------------------------


class Tied(nn.Module):
    """One weight at work in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = (
            nn.Linear(2, 2),
            nn.Linear(2, 2, bias=False),
            nn.Linear(2, 1),
        )
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Untied(nn.Module):
    """The same function with the weight named once."""

    def __init__(self, tied: Tied) -> None:
        super().__init__()
        self.weight, self.bias = tied.one.weight, tied.one.bias
        self.head = tied.head

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.weight.T + self.bias)
        return self.head(torch.tanh(hidden @ self.weight.T))


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_tied_weights_adapt_as_one(engine: str):
    model, batch = Tied().double(), regression()
    before = Snapshot(model)
    out, gradients = meta_step(model, engine, batch)
    names = ["model.one.weight", "model.one.bias", "model.head.weight", "model.head.bias"]
    assert list(gradients) == [*names, "relation.weight"]
    wanted, other = meta_step(Untied(model), "loop", batch)
    assert_close(out.loss, wanted.loss, **TIGHT)
    assert_close(list(gradients.values()), list(other.values()), **TIGHT)
    before.check()
    assert model.two.weight is model.one.weight


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_frozen_parameters_stay(engine: str):
    model, batch = net(nn.Linear(4, 4)), regression()
    model[1].requires_grad_(False)
    learner, reg = maml(model, engine), regularizer()
    adapted = learner.adapt(batch.support, F.mse_loss)
    moved = ["model.0.weight", "model.0.bias", "model.3.weight", "model.3.bias"]
    assert list(adapted.fast) == moved
    fast = adapt_by_hand(model, batch.support.x[0], batch.support.y[0])
    for name in moved:
        assert_close(adapted.fast[name][0], fast[name.removeprefix("model.")], **TIGHT)
        assert (adapted.fast[name] - dict(learner.named_parameters())[name]).abs().min() > 0
    reg(learner, batch).loss.backward()
    assert [p.grad for p in model[1].parameters()] == [None, None]
    assert all(p.grad.abs().max() > 0 for p in (*model[0].parameters(), *model[3].parameters()))
    assert not model[1].weight.requires_grad


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("kind", ["maml", "metasgd", "anil", "tnet"])
def test_frozen_parameters_stay_with_every_learner(engine: str, kind: str):
    model, batch = net(nn.Linear(4, 4)), regression()
    model[0].requires_grad_(False)
    options = {"lr": LR, "steps": STEPS, "engine": engine}
    learner = {
        "maml": lambda: tr.MAML(model, **options),
        "metasgd": lambda: tr.MetaSGD(model, **options).double(),
        "anil": lambda: tr.ANIL(model, head="3", **options),
        "tnet": lambda: tr.TNet(model, **options).double(),
    }[kind]()
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    regularizer()(learner, batch).loss.backward()
    optimizer.step()
    assert not any(
        name.startswith("model.0.") for name in learner.adapt(batch.support, F.mse_loss).fast
    )
    assert [p.grad for p in model[0].parameters()] == [None, None]
    assert torch.equal(model[0].weight, before)
    assert model[3].weight.grad.abs().max() > 0


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize("first_order", [False, True])
def test_unused_parameters_are_no_obstacle(engine: str, first_order: bool):
    model, batch = Unused().double(), regression()
    learner, reg = maml(model, engine, first_order=first_order), regularizer()
    out = reg(learner, batch)
    out.loss.backward()
    for p in model.spare.parameters():
        assert p.grad is None or p.grad.abs().max() == 0
    assert all(p.grad.abs().max() > 0 for p in model.net.parameters())
    adapted = learner.adapt(batch.support, F.mse_loss)
    spare = adapted.fast["model.spare.weight"]
    assert torch.equal(spare, model.spare.weight.expand(TASKS, 3, 3))
    plain = maml(model.net, "loop", first_order=first_order)
    assert_close(out.loss, regularizer()(plain, batch).loss, **TIGHT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("kind", ["metasgd", "tnet"])
def test_unused_parameters_are_no_obstacle_to_other_learners(engine: str, kind: str):
    model, batch = Unused().double(), regression()
    made = {"metasgd": tr.MetaSGD, "tnet": tr.TNet}[kind]
    learner = made(model, lr=LR, steps=STEPS, engine=engine).double()
    out = regularizer()(learner, batch)
    out.loss.backward()
    assert_close(out.loss, regularizer()(maml(model.net, "loop"), batch).loss, **TIGHT)
    for p in model.spare.parameters():
        assert p.grad is None or p.grad.abs().max() == 0
    # An optimizer finds only finite gradients.
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in learner.parameters())


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_a_model_that_uses_none_of_its_parameters_is_told_so(engine: str):
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1]

    batch = regression()
    with pytest.raises(ValueError, match="the support loss depends on none of the adapted param"):
        maml(Constant().double(), engine).adapt(batch.support, F.mse_loss)


class Buffered(nn.Module):
    """Scales by a buffer and counts its calls in another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("scale", torch.tensor(3.0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("shift", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x * self.scale) + self.shift


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_buffers_are_used_and_left_alone(engine: str):
    model, batch = Buffered().double(), regression()
    before = Snapshot(model)
    shift = model.shift
    out, _ = meta_step(model, engine, batch)
    before.check()
    assert model.calls == 0 and model.shift is shift and shift.item() == 1
    by_hand = [adapt_by_hand(model, batch.support.x[i], batch.support.y[i]) for i in range(TASKS)]
    wanted = [predict_by_hand(model, f, x) for f, x in zip(by_hand, batch.query.x, strict=True)]
    assert_close(out.predictions, torch.stack(wanted).detach(), **TIGHT)


class Averaging(nn.Module):
    """Keeps a running mean of its inputs, in place or by assignment."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().mean(0)
        if self.in_place:
            self.mean.mul_(0.9).add_(0.1 * mean)
        else:
            self.mean = 0.9 * self.mean + 0.1 * mean
        return self.layer(x) + self.mean.sum()


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_statistics_of_ones_own_by_assignment(engine: str):
    model, batch = Averaging(in_place=False).double(), regression()
    model.couples_samples = True
    before = Snapshot(model)
    agree(meta_step(model, engine, batch), meta_step(model, "loop", batch))
    before.check()


def test_statistics_of_ones_own_in_place_run_one_task_after_the_other():
    model, batch = Averaging(in_place=True).double(), regression()
    model.couples_samples = True
    before = Snapshot(model)
    loop = meta_step(model, "loop", batch)
    agree(loop, meta_step(model, "higher", batch))
    with pytest.warns(UserWarning, match="runs this learner with 'loop'"):
        auto = meta_step(model, "auto", batch)
    agree(auto, loop)
    # Every forward starts from the buffer as it was: what was written before is discarded.
    assert_close(loop[0].loss, meta_step(assigning(model), "loop", batch)[0].loss, **TIGHT)
    before.check()


def assigning(model: Averaging) -> Averaging:
    other = Averaging(in_place=False).double()
    other.couples_samples = True
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("engine", ["loop", "higher"])
def test_parametrized_weights(engine: str):
    weight_norm = nn.utils.parametrizations.weight_norm
    model, batch = net(weight_norm(nn.Linear(4, 4).double())), regression()
    before = Snapshot(model)
    out, gradients = meta_step(model, engine, batch)
    assert "model.1.parametrizations.weight.original0" in gradients
    assert all(g.abs().max() > 0 for g in gradients.values())
    fast = [adapt_by_hand(model, batch.support.x[i], batch.support.y[i]) for i in range(TASKS)]
    wanted = [predict_by_hand(model, f, x) for f, x in zip(fast, batch.query.x, strict=True)]
    assert_close(out.predictions, torch.stack(wanted).detach(), **TIGHT)
    before.check()


def test_spectral_norm_runs_one_task_after_the_other():
    spectral_norm = nn.utils.parametrizations.spectral_norm
    model, batch = net(spectral_norm(nn.Linear(4, 4).double())), regression()
    before = Snapshot(model)
    agree(meta_step(model, "loop", batch), meta_step(model, "higher", batch))
    with pytest.warns(UserWarning, match="runs this learner with 'loop'"):
        out, _ = meta_step(model, "auto", batch)
    assert out.engine == "loop"
    before.check()


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_training_moves_parameters_and_nothing_else(engine: str):
    model, batch = net(nn.BatchNorm1d(4)), regression()
    learner, reg = maml(model, engine), regularizer(tr.InputEncoder(model[:3], dim=4))
    before = Snapshot(model)
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()])
    for _ in range(3):
        optimizer.zero_grad()
        reg(learner, batch).loss.backward()
        optimizer.step()
    parameters = {n for n, _ in model.named_parameters()}
    after = model.state_dict()
    moved = {n for n, t in after.items() if not torch.equal(t, before.values[n])}
    # Adam turns even the rounding error that stands for the useless bias's gradient into a step.
    assert parameters - {"0.bias"} <= moved <= parameters
    assert attributes(model) == before.attributes


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_an_error_in_the_model_leaves_no_trace(engine: str):
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net(nn.BatchNorm1d(4)), nn.Linear(1, 1)
            self.fail = False

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            if self.fail:
                raise RuntimeError("on purpose")
            return self.head(hidden)

    model, batch = Failing().double(), regression()
    for learner in (
        maml(model, engine),
        tr.ANIL(model, head="head", lr=LR, steps=STEPS, engine=engine),
    ):
        model.fail = False
        learner.adapt(batch.support, F.mse_loss)
        model.fail = True
        before = Snapshot(model)
        with pytest.raises(RuntimeError, match="on purpose"):
            regularizer()(learner, batch)
        before.check()


# ---- InstanceNorm -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [*BATCHED_FIRST, *later("channels_last", "traced")])
def test_instance_norm_in_training_mode_records_nothing(engine: str):
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv1d(1, 3, 1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(6, 1))
    untracked = copy.deepcopy(model).double()
    untracked[1].track_running_stats = False
    untracked[1].running_mean = untracked[1].running_var = None
    x, y = draw(TASKS, SUPPORT, 1, 2), draw(TASKS, SUPPORT, 1)
    batch = tr.TaskBatch(support=(x, y), query=(x, y))
    model.double()
    before = Snapshot(model)
    agree(
        meta_step(model, engine, batch, tr.UpdateEncoder(dim=5)),
        meta_step(untracked, "loop", batch, tr.UpdateEncoder(dim=5)),
    )
    before.check()


# ---- layers and vmap ----------------------------------------------------------------------------


def sequences() -> tr.TaskBatch:
    x = draw(TASKS, SUPPORT, 3, 4)
    return tr.TaskBatch(support=(x, x.mean((2, 3))[..., None].tanh()), query=(x, x[..., 0, :1]))


@pytest.mark.parametrize("training", [True, False])
def test_attention_in_either_mode_runs_on_all_tasks_at_once(training: bool):
    """In evaluation mode it has a kernel without a derivative, which vmap must not make it take."""
    layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 1)).double().train(training)
    encoder = tr.UpdateEncoder(dim=5)
    batch = sequences()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        agree(meta_step(model, "batched", batch, encoder), meta_step(model, "loop", batch, encoder))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_that_vmap_cannot_run_is_refused_with_the_way_out():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0][:, -1]

    model = nn.Sequential(Last(), nn.Linear(3, 1)).double()
    text = r"(?s)engine='batched'.*cannot run this model: .*gru.*Use engine='auto' or 'loop'"
    with pytest.raises(RuntimeError, match=text):
        meta_step(model, "batched", sequences(), tr.UpdateEncoder(dim=5))
