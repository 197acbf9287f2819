"""Every engine x learner x order against the loop-only reference and finite differences."""

import functools

import contracts
import pytest
import reference
import torch
from contracts import (
    BATCHED_FIRST,
    CLASSIFIERS,
    ENGINES,
    HIDDEN,
    INPUTS,
    LEARNERS,
    OUTPUTS,
    close,
    later,
)

import trlearner as tr
from trlearner.tasks import rows

TIGHT = 1e-9
DIFFERENCES = 1e-6

ORDERS = ("second", "first", "recompute")
CELLS = [
    pytest.param(engine, name, order, marks=[] if order == "second" else pytest.mark.full)
    for engine in ENGINES
    for name in LEARNERS
    for order in ORDERS
    if order != "recompute" or engine in ("loop", "channels_last", "batched")
]


def labelled(seed: int = 3) -> tr.LabelledEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tr.LabelledEncoder(None, dim=4, features=INPUTS, targets=OUTPUTS, hidden=5).double()


def regularizer(encoder: tr.Encoder, **options: object) -> tr.TRLearner:
    return tr.TRLearner(encoder=encoder, heads=3, lam=0.7, **options).double()


@functools.cache
def regression(name: str, first_order: bool) -> contracts.Problem:
    model, weights = contracts.net(), {"normalize": "softmax", "temperature": 0.5}
    learner = contracts.learner(name, model, "loop", first_order=first_order)
    reg = regularizer(tr.InputEncoder(model.body, dim=HIDDEN), **weights)
    made = contracts.problem(
        name, learner, reg, contracts.regression_batch(), first_order, **weights
    )
    # Nothing is compared that is zero for a reason of its own.
    assert all(wanted.abs().max() > 1e-8 for wanted in made.gradients.values())
    return made


@pytest.mark.parametrize(("engine", "name", "order"), CELLS)
def test_engine_equals_reference(engine: str, name: str, order: str) -> None:
    made = regression(name, order == "first")
    made.learner.recompute = order == "recompute"
    made.agrees(engine)


@functools.cache
def step(encoder: str, engine: str) -> list[torch.Tensor]:
    """Relations and gradients with an encoder."""
    model = contracts.net()
    learner = contracts.learner("maml", model, engine)
    reg = regularizer(contracts.encoder(encoder, model))
    out = reg(learner, contracts.regression_batch(tasks=3))
    assert out.engine == engine
    return [out.relations, *contracts.gradients(out.loss, learner, reg).values()]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("encoder", contracts.ENCODERS)
def test_every_encoder_gives_the_same_step_on_every_engine(engine: str, encoder: str) -> None:
    for found, expected in zip(step(encoder, engine), step(encoder, "higher"), strict=True):
        close(found, expected, TIGHT)
        assert expected.abs().max() > 1e-8


@functools.cache
def classification(name: str, encoder: str, align: str) -> contracts.Problem:
    model, batch = contracts.net(), contracts.class_batch()
    learner = contracts.learner(name, model, "loop")
    made = tr.InputEncoder(model.body, dim=HIDDEN) if encoder == "input" else labelled()
    reg = regularizer(made, loss_fn=contracts.cross_entropy, align=align)
    g = learner.model.body if encoder == "input" else (lambda x: x)
    aligned = alignment(align, g, batch)
    return contracts.problem(name, learner, reg, batch, kind="logits", alignment=aligned)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("encoder", ["input", *later("labelled")])
@pytest.mark.parametrize("align", ["sinkhorn", *later("none", "hungarian")])
def test_classification_equals_reference(engine: str, encoder: str, align: str) -> None:
    if align == "hungarian" and engine == "traced":
        pytest.skip("a permutation found by an algorithm is no part of a graph; see the error test")
    for name in (*CLASSIFIERS, "maml"):
        classification(name, encoder, align).agrees(engine)


def alignment(align: str, g, batch: tr.TaskBatch):  # type: ignore[no-untyped-def]
    if align == "none":
        return None
    tasks = contracts.tasks_of(batch)
    means = [reference.prototypes(g, *support, OUTPUTS) for support, _ in tasks]
    if align == "hungarian":
        return [[reference.hungarian(p, q) for q in means] for p in means]
    return [[reference.sinkhorn(p, q, 0.1, 20) for q in means] for p in means]


@functools.cache
def differences(name: str) -> dict[str, torch.Tensor]:
    """Finite differences of the meta-loss, whose values are the same on every engine."""
    batch, learner = (
        contracts.regression_batch(tasks=3),
        contracts.learner(name, contracts.net(), "batched"),
    )
    reg = regularizer(labelled())

    def loss() -> torch.Tensor:
        with torch.no_grad():
            return reg(learner, batch).loss

    named = {f"{i}.{n}": p for i, m in enumerate((learner, reg)) for n, p in m.named_parameters()}
    return {key: contracts.slopes(loss, p) for key, p in named.items()}


@pytest.mark.full
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LEARNERS)
def test_meta_gradient_equals_finite_differences(engine: str, name: str) -> None:
    learner, reg = contracts.learner(name, contracts.net(), engine), regularizer(labelled())
    out = reg(learner, contracts.regression_batch(tasks=3))
    found = contracts.gradients(out.loss, learner, reg)
    assert found.keys() == differences(name).keys()
    for key, expected in differences(name).items():
        close(contracts.along(found[key]), expected, DIFFERENCES)


@pytest.mark.full
@pytest.mark.parametrize("engine", ENGINES)
def test_first_order_gradient_is_that_of_frozen_inner_gradients(engine: str) -> None:
    """FOMAML's own independent source: finite differences with the inner updates held fixed."""
    model, batch = contracts.net(), contracts.regression_batch(tasks=3)
    learner = contracts.learner("maml", model, engine, first_order=True)
    reg = regularizer(labelled())
    found = contracts.gradients(reg(learner, batch).loss, learner)
    before = {n: p.detach().clone() for n, p in learner.named_parameters()}
    with torch.no_grad():
        fast = learner.adapt(batch.support, reg.loss_fn).fast
    moved = {n: fast[n] - before[n] for n in fast}

    def loss() -> torch.Tensor:
        models = [
            {n.removeprefix("model."): p + moved[n][i] for n, p in learner.named_parameters()}
            for i in range(3)
        ]
        tasks = contracts.tasks_of(batch)
        predictions = [[reference.mlp(m, q[0]) for _, q in tasks] for m in models]
        targets = [q[1] for _, q in tasks]
        embeddings = [
            contracts.labelled_embedding(reg.encoder, lambda x: x, t, None) for t in tasks
        ]
        relations = reference.relation_matrix(embeddings, reg.relation.weight)
        own = reference.mean([reg.loss_fn(predictions[i][i], targets[i]) for i in range(3)])
        return own + reg.lam * reference.relation_loss(predictions, targets, relations, reg.loss_fn)

    for name, p in learner.named_parameters():
        close(contracts.along(found["0." + name]), contracts.slopes(loss, p), DIFFERENCES)


@functools.cache
def ragged(name: str, top_k: int | None) -> contracts.Problem:
    """Tasks of unequal size, of which the formulas know only the real samples."""
    classes = name in CLASSIFIERS
    tasks = contracts.tasks_of(contracts.class_batch() if classes else contracts.regression_batch())
    cut = [
        ((x[: 5 - i // 2], y[: 5 - i // 2]), (u[: 6 - i], v[: 6 - i]))
        for i, ((x, y), (u, v)) in enumerate(tasks)
    ]
    batch = tr.TaskBatch.from_tasks(cut, ways=OUTPUTS if classes else None)
    assert batch.support.mask is not None
    assert batch.query.mask is not None
    model = contracts.net()
    learner = contracts.learner(name, model, "loop")
    loss_fn = contracts.cross_entropy if classes else torch.nn.functional.mse_loss
    reg = regularizer(tr.InputEncoder(model.body, dim=HIDDEN), loss_fn=loss_fn, top_k=top_k)
    kind = "logits" if classes else "values"
    return contracts.problem(name, learner, reg, batch, kind=kind, top_k=top_k)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ["maml", "bayes", *later("metasgd", "anil", "tnet", *CLASSIFIERS)])
@pytest.mark.parametrize("top_k", [None, *later(2)])
def test_masks_equal_dropping_the_samples(engine: str, name: str, top_k: int | None) -> None:
    ragged(name, top_k).agrees(engine)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ["maml", "bayes", *later("metasgd", "anil", "tnet", *CLASSIFIERS)])
def test_test_time_adaptation_keeps_no_graph_and_equals_training(engine: str, name: str) -> None:
    model = contracts.net()
    batch = contracts.class_batch() if name in CLASSIFIERS else contracts.regression_batch()
    learner = contracts.learner(name, model, engine)
    loss_fn = contracts.cross_entropy if name in CLASSIFIERS else torch.nn.functional.mse_loss
    with_graph = learner.adapt(batch.support, loss_fn, steps=3)(batch.query.x)
    with torch.no_grad():
        without = learner.adapt(batch.support, loss_fn, steps=3)(batch.query.x)
    assert with_graph.requires_grad
    assert not without.requires_grad
    close(without, with_graph.detach(), 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_cross_predictions_are_each_model_on_each_task(engine: str) -> None:
    model, batch = contracts.net(), contracts.regression_batch()
    learner = contracts.learner("maml", model, engine)
    adapted = learner.adapt(batch.support, torch.nn.functional.mse_loss)
    crossed = adapted.cross(batch.query.x)
    assert crossed.shape == (4, 4, 6, OUTPUTS)
    for j in range(4):
        params = {n.removeprefix("model."): p[j] for n, p in adapted.fast.items()}
        for i in range(4):
            close(crossed[j, i], reference.mlp(params, batch.query.x[i]), 1e-12)
    close(adapted(batch.query.x), torch.stack([crossed[i, i] for i in range(4)]), 1e-12)


@pytest.mark.unchecked  # a check of types looks at entries
@pytest.mark.parametrize("engine", ["loop", "channels_last", "higher"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"top_k": 2}])
def test_engines_that_take_tasks_one_by_one_stack_no_parameters(engine, options, monkeypatch):
    """A stack copies every parameter of every task."""
    stacked = []

    def spy(tasks, name):
        stacked.append(name)
        return torch.stack([task[name] for task in tasks.tasks])

    monkeypatch.setattr(rows.Rows, "__getitem__", spy)
    model = contracts.net()
    learner = contracts.learner("maml", model, engine)
    reg = tr.TRLearner(tr.InputEncoder(model.body, dim=contracts.HIDDEN), **options).double()
    reg(learner, contracts.regression_batch()).loss.backward()
    assert not stacked
    fast = learner.adapt(contracts.regression_batch().support, reg.loss_fn).fast
    assert fast["model.head.bias"].shape == (contracts.TASKS, contracts.OUTPUTS)
    assert stacked == ["model.head.bias"]
