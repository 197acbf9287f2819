"""TRLearner as a whole: options, limits, randomness, state."""

import copy
import warnings
from dataclasses import FrozenInstanceError, replace

import contracts
import pytest
import torch
from contracts import BATCHED_FIRST, LEARNERS, close
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import trlearner as tr
from trlearner.base.functional import tensors

EXACT = 1e-12


def regularizer(seed: int = 3, **options: object) -> tr.TRLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = tr.LabelledEncoder(
            None, dim=4, features=contracts.INPUTS, targets=contracts.OUTPUTS, hidden=5
        )
        return tr.TRLearner(encoder=encoder, **{"heads": 3, "lam": 0.7, **options}).double()


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", LEARNERS)
def test_lambda_zero_is_the_learner_alone_to_the_last_bit(engine: str, name: str) -> None:
    model = nn.Sequential()
    model = contracts.net()
    model.body = nn.Sequential(model.body, nn.Dropout(0.3))
    batch = contracts.regression_batch()
    learner = contracts.learner(name, model, engine)
    reg = regularizer(lam=0, queries=0.5)
    learner.check(batch.support, mse_loss)

    torch.manual_seed(0)
    out = reg(learner, batch)
    found = contracts.gradients(out.loss, learner)
    after = torch.get_rng_state()

    torch.manual_seed(0)
    predictions = learner.adapt(batch.support, mse_loss)(batch.query.x)
    pairs = zip(predictions, batch.query.y, strict=True)
    alone = torch.stack([mse_loss(p, y) for p, y in pairs]).mean()
    wanted = contracts.gradients(alone, learner)

    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(out.predictions, predictions)
    assert torch.equal(out.loss, alone)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert out.relations is None
    assert out.weights is None
    assert out.relation_loss == 0
    assert all(
        g is None for g in torch.autograd.grad(out.loss, list(reg.parameters()), allow_unused=True)
    )


def test_lambda_zero_never_runs_the_encoder() -> None:
    reg = regularizer(lam=0)
    reg.encoder.encode = None  # would raise if called
    reg(contracts.learner("maml", contracts.net(), "batched"), contracts.regression_batch())
    assert reg.lam == 0


def test_lambda_scales_the_relation_term_and_can_be_annealed() -> None:
    learner, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    reg = regularizer()
    for lam in (0.7, 0.2, 3):
        reg.lam = lam
        out = reg(learner, batch)
        close(out.loss.detach(), out.task_loss + lam * out.relation_loss, EXACT)
        assert out.relation_loss > 0


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_only_the_loss_carries_a_graph(engine: str) -> None:
    out = regularizer()(
        contracts.learner("maml", contracts.net(), engine), contracts.regression_batch()
    )
    assert out.loss.requires_grad
    for name in ("task_loss", "relation_loss", "relations", "weights", "predictions"):
        assert not getattr(out, name).requires_grad, name


def test_no_grad_runs_forward_only() -> None:
    learner, batch, reg = (
        contracts.learner("maml", contracts.net(), "auto"),
        contracts.regression_batch(),
        regularizer(),
    )
    with torch.no_grad():
        without = reg(learner, batch)
    assert not without.loss.requires_grad
    close(without.loss, reg(learner, batch).loss.detach(), EXACT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("top_k", [None, 2])
def test_chunks_change_nothing(engine: str, top_k: int | None) -> None:
    """One model a chunk, a last chunk that is smaller, and room for more than all four."""
    learner, batch = (
        contracts.learner("maml", contracts.net(), engine),
        contracts.regression_batch(),
    )
    losses, gradients = [], []
    for size in (None, 1, 3, 5):
        reg = regularizer(chunk_size=size, top_k=top_k)
        out = reg(learner, batch)
        losses.append(out.loss)
        gradients.append(contracts.gradients(out.loss, learner, reg))
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        close(loss, losses[0], EXACT)
        for key, wanted in gradients[0].items():
            close(found[key], wanted, EXACT)


@pytest.mark.full
@pytest.mark.parametrize("engine", contracts.EAGER)
@pytest.mark.parametrize("options", [{}, {"align": "sinkhorn"}, {"align": "sinkhorn", "top_k": 3}])
def test_chunks_change_nothing_for_classes(engine: str, options: dict[str, object]) -> None:
    """A chunk may be a task's own model alone, whose weight is 0 and has no logarithm."""
    learner = contracts.learner("maml", contracts.net(), engine)
    batch = contracts.class_batch(tasks=5)
    whole = regularizer(loss_fn=cross_entropy, **options)
    chunked = regularizer(loss_fn=cross_entropy, chunk_size=1, **options)
    a, b = (reg(learner, batch) for reg in (whole, chunked))
    close(b.loss, a.loss, EXACT)
    found, wanted = (contracts.gradients(o.loss, learner, r) for o, r in ((b, chunked), (a, whole)))
    for key in wanted:
        close(found[key], wanted[key], EXACT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("align", ["none", "sinkhorn"])
def test_top_k_asks_only_the_nearest_and_equals_the_full_mixture(engine: str, align: str) -> None:
    """Computing k models for each task gives what masking the full cross predictions gives."""
    model, batch = contracts.net(), contracts.class_batch(tasks=5)
    learner = contracts.learner("maml", model, engine)
    reg = regularizer(top_k=2, loss_fn=cross_entropy, align=align)
    out = reg(learner, batch)
    adapted = learner.adapt(batch.support, cross_entropy)
    matching = None
    if align == "sinkhorn":
        matching = tr.relations.sinkhorn(
            reg.encoder.prototypes(tensors(reg.encoder), batch, adapted)
        )
    expected = tr.relation_consistency(
        adapted.cross(batch.query.x),
        batch.query.y,
        out.relations,
        cross_entropy,
        top_k=2,
        alignment=matching,
    )
    close(out.relation_loss, expected.detach(), EXACT)
    assert ((out.weights > 0).sum(1) == 2).all()


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_permuting_tasks_permutes_m_and_leaves_the_loss(engine: str) -> None:
    learner, batch, reg = (
        contracts.learner("maml", contracts.net(), engine),
        contracts.regression_batch(),
        regularizer(),
    )
    order = torch.tensor([3, 1, 0, 2])
    a, b = reg(learner, batch), reg(learner, batch[order])
    close(b.loss, a.loss, EXACT)
    close(b.relations, a.relations[order][:, order], EXACT)
    close(b.weights, a.weights[order][:, order], EXACT)
    close(b.predictions, a.predictions[order], EXACT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_a_batch_of_equal_tasks(engine: str) -> None:
    one = contracts.regression_batch(tasks=1)
    batch = one[[0, 0, 0, 0]]
    out = regularizer()(contracts.learner("maml", contracts.net(), engine), batch)
    close(out.relations, torch.ones(4, 4).double(), 1e-9)
    close(out.relation_loss, out.task_loss, EXACT)


def test_queries_share_draws_real_ones_and_is_reproducible() -> None:
    learner = contracts.learner("maml", contracts.net(), "batched")
    tasks = contracts.tasks_of(contracts.regression_batch())
    batch = tr.TaskBatch.from_tasks(
        [(s, (x[: 2 + i], y[: 2 + i])) for i, (s, (x, y)) in enumerate(tasks)]
    )
    reg = regularizer(queries=0.5, generator=torch.Generator().manual_seed(7))
    before = torch.get_rng_state()
    choice = reg._draw_queries(batch.query)
    assert torch.equal(torch.get_rng_state(), before)
    assert choice.shape == (4, 3)
    assert all(len(set(row.tolist())) == 3 for row in choice)
    # Task 0 has two real queries and three are drawn: both are among them.
    assert batch.query.mask[0, choice[0]].sum() == 2
    assert batch.query.mask[3, choice[3]].all()
    runs = []
    for _ in range(2):
        again = regularizer(queries=0.5, generator=torch.Generator().manual_seed(7))
        runs.append([again(learner, batch).relation_loss for _ in range(3)])
    assert torch.equal(torch.stack(runs[0]), torch.stack(runs[1]))
    assert len(set(torch.stack(runs[0]).tolist())) == 3


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_queries_share_equals_choosing_them_by_hand(engine: str) -> None:
    learner, batch = (
        contracts.learner("maml", contracts.net(), engine),
        contracts.regression_batch(),
    )
    reg, twin = (
        regularizer(queries=0.4, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    out = reg(learner, batch)
    choice = twin._draw_queries(batch.query)
    by_hand = tr.TaskBatch(batch.support, batch.query.choose(choice))
    whole = regularizer(generator=torch.Generator().manual_seed(7))
    close(out.relation_loss, whole(learner, by_hand).relation_loss, EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the traced engine says that the shapes changed
        close(out.task_loss, whole(learner, batch).task_loss, EXACT)


def test_one_task_warns_once_and_has_no_relation_loss() -> None:
    learner, reg = contracts.learner("maml", contracts.net(), "batched"), regularizer()
    batch = contracts.regression_batch(tasks=1)
    with pytest.warns(UserWarning, match="one task has no neighbours"):
        out = reg(learner, batch)
    assert out.relation_loss == 0
    close(out.loss.detach(), out.task_loss, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg(learner, batch)


def test_two_tasks_warn_and_teach_the_relations_nothing() -> None:
    learner, reg = contracts.learner("maml", contracts.net(), "batched"), regularizer()
    with pytest.warns(UserWarning, match="Use three tasks or more"):
        out = reg(learner, contracts.regression_batch(tasks=2))
    close(out.weights, torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), EXACT)
    out.loss.backward()
    assert reg.relation.weight.grad.abs().max() < 1e-12


def test_zero_embeddings_give_finite_gradients() -> None:
    learner, batch, reg = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
        regularizer(),
    )
    for p in reg.encoder.parameters():
        p.data.zero_()
    out = reg(learner, batch)
    assert (out.relations == 0).all()
    close(out.weights, (1 - torch.eye(4).double()) / 3, EXACT)
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in reg.parameters() if p.grad is not None)


def test_paper_preset_is_the_literal_formula() -> None:
    model, batch = contracts.net(), contracts.class_batch()
    learner = contracts.learner("maml", model, "batched")
    reg = regularizer(loss_fn=cross_entropy, preset="paper")
    out = reg(learner, batch)
    expected = contracts.truth("maml", learner, reg, batch, kind="values", normalize="quotient")
    close(out.loss, expected.loss, 1e-9)


@pytest.mark.full
def test_training_makes_the_losses_fall() -> None:
    batch = contracts.regression_batch()
    learner = contracts.learner("maml", contracts.net(), "auto", lr=0.05)
    reg = regularizer(normalize="softmax")
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=1e-2)
    first = reg(learner, batch)
    for _ in range(60):
        optimizer.zero_grad()
        reg(learner, batch).loss.backward()
        optimizer.step()
    last = reg(learner, batch)
    assert last.task_loss < 0.9 * first.task_loss
    assert last.relation_loss < 0.9 * first.relation_loss


def test_parameters_changed_between_forward_and_backward_raise() -> None:
    learner, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    out = regularizer()(learner, batch)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_state_dict_brings_back_the_relations_and_the_draws() -> None:
    learner, batch = (
        contracts.learner("maml", contracts.net(), "batched"),
        contracts.regression_batch(),
    )
    reg = regularizer(queries=0.5)
    reg(learner, batch)
    saved = copy.deepcopy(reg.state_dict())
    expected = reg(learner, batch)
    other = regularizer(seed=9, queries=0.5)
    other.load_state_dict(saved)
    close(other(learner, batch).loss, expected.loss, 0.0)


def test_state_dict_loads_without_unpickling_code(tmp_path) -> None:  # type: ignore[no-untyped-def]
    reg = regularizer()
    torch.save(reg.state_dict(), tmp_path / "reg.pt")
    regularizer(seed=9).load_state_dict(torch.load(tmp_path / "reg.pt", weights_only=True))
    assert set(reg.state_dict()) > {"relation.weight", "encoder.out.weight"}


def test_parameters_never_hold_the_learners() -> None:
    model = contracts.net()
    reg = tr.TRLearner(encoder=tr.InputEncoder(model.body, dim=5))
    learner = tr.MAML(model)
    theirs = {id(p) for p in learner.parameters()}
    assert not theirs & {id(p) for p in reg.parameters()}
    assert set(dict(reg.named_parameters())) == {"relation.weight"}


LEARNER = contracts.learner("maml", contracts.net(), "batched")
BATCH = contracts.regression_batch()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda: regularizer(lam=-1), "lam must be a finite number of at least 0, got -1"),
        (lambda: regularizer(lam=float("nan")), "lam must be a finite number"),
        (lambda: regularizer(queries=0), r"queries must be a share in \(0, 1\], got 0"),
        (lambda: regularizer(queries=30), r"queries must be a share in \(0, 1\], got 30"),
        (lambda: regularizer(temperature=0), "temperature must be a finite number above 0"),
        (lambda: regularizer(top_k=0), "top_k must be a whole number of at least 1"),
        (lambda: regularizer(chunk_size=0), "chunk_size must be a whole number"),
        (lambda: regularizer(normalize="max"), "normalize must be one of"),
        (lambda: regularizer(mixture="mean"), "mixture must be one of"),
        (lambda: regularizer(align="greedy"), "align must be one of"),
        (lambda: regularizer(preset="mine"), "preset must be 'paper' or None"),
        (lambda: tr.TRLearner(encoder=nn.Linear(2, 2)), "encoder must be a task encoder"),
        (lambda: regularizer()(contracts.net(), BATCH), "learner must be a trlearner Learner"),
        (lambda: regularizer()(LEARNER, BATCH.support), "batch must be a TaskBatch, got Samples"),
        (
            lambda: regularizer(align="sinkhorn", loss_fn=cross_entropy)(
                LEARNER,
                tr.TaskBatch(
                    (BATCH.support.x, torch.zeros(4, 5).long()),
                    (BATCH.query.x, torch.zeros(4, 6).long()),
                ),
            ),
            "align='sinkhorn' needs the number of classes",
        ),
    ],
)
def test_errors_name_argument_value_and_remedy(run, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError), match=match):
        run()


def test_alignment_needs_prototypes() -> None:
    class Plain(tr.Encoder):
        dim = 2

        def encode(self, state, batch, models):  # type: ignore[no-untyped-def]
            return batch.support.x.mean(1)

    with pytest.raises(ValueError, match="which Plain does not have"):
        tr.TRLearner(encoder=Plain(), align="sinkhorn")
    out = tr.TRLearner(encoder=Plain()).double()(LEARNER, BATCH)
    assert out.relations.shape == (4, 4)


def test_head_noise_follows_the_seed_and_leaves_the_global_random_state_alone() -> None:
    def weight(seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=4))
            assert torch.equal(torch.get_rng_state(), before)
        return reg.relation.weight.detach()

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


@pytest.mark.parametrize("outputs", [(4, 6, 1), (4, 6), (4, 6, 3, 5, 5)])
def test_integer_targets_that_are_no_classes_are_refused_as_logits(
    outputs: tuple[int, ...],
) -> None:
    f = torch.zeros(4, *outputs)
    y = torch.zeros(4, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"at least two classes, got .*Pass mixture='values'"):
        tr.relation_consistency(f, y, torch.eye(4), lambda p, t: p.mean())
    values = tr.relation_consistency(f, y, torch.eye(4), lambda p, t: p.mean(), mixture="values")
    assert values == 0


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_inference_mode_gives_what_no_grad_gives(engine: str) -> None:
    learner, reg = contracts.learner("maml", contracts.net(), engine), regularizer()
    with torch.no_grad():
        batch = contracts.regression_batch()
        expected = reg(learner, batch)
        predictions = learner.adapt(batch.support, mse_loss)(batch.query)
    with torch.inference_mode():
        batch = contracts.regression_batch()
        found = reg(learner, batch)
        close(found.loss, expected.loss, 0.0)
        close(learner.adapt(batch.support, mse_loss)(batch.query), predictions, 0.0)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_a_temperature_may_be_learned(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine)
    reg = regularizer(normalize="softmax")
    reg.temperature = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    out = reg(learner, contracts.regression_batch())
    (found,) = torch.autograd.grad(out.loss, reg.temperature)

    def loss_at(temperature: float) -> torch.Tensor:
        other = regularizer(normalize="softmax", temperature=temperature)
        return other(learner, contracts.regression_batch()).loss.detach()

    wanted = (loss_at(0.5 + 1e-5) - loss_at(0.5 - 1e-5)) / 2e-5
    contracts.close(found, wanted, 1e-7)


# ---- options that are functions, and options set anew ------------------------------------------------


def by_square(relations: Tensor, counts: Tensor) -> Tensor:
    """Weights in proportion to the square of the relation."""
    raw = torch.where(counts, relations.square(), 0.0)
    return raw / raw.sum(1, keepdim=True)


@pytest.mark.parametrize("engine", ["batched", "traced"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_weights_may_be_a_function_of_the_relations(engine: str, top_k: int | None) -> None:
    learner = contracts.learner("maml", contracts.net(), engine)
    reg = regularizer(normalize=by_square, top_k=top_k)
    out = reg(learner, contracts.regression_batch())
    m = out.relations
    for i, row in enumerate(m.tolist()):
        others = sorted((j for j in range(len(row)) if j != i), key=lambda j: -row[j])[:top_k]
        whole = sum(row[j] ** 2 for j in others)
        wanted = [row[j] ** 2 / whole if j in others else 0.0 for j in range(len(row))]
        close(out.weights[i], torch.tensor(wanted, dtype=torch.float64), EXACT)


def test_a_graph_notices_what_such_a_function_reads() -> None:
    learner, power = contracts.learner("maml", contracts.net(), "traced"), [2.0]

    def weights(relations: Tensor, counts: Tensor) -> Tensor:
        raw = torch.where(counts, relations.abs() ** power[0], 0.0)
        return raw / raw.sum(1, keepdim=True)

    reg, batch = regularizer(normalize=weights), contracts.regression_batch()
    before = reg(learner, batch).weights
    power[0] = 4.0
    with pytest.warns(UserWarning, match="changed: normalize"):
        after = reg(learner, batch).weights
    assert (before - after).abs().max() > 1e-3


@pytest.mark.unchecked
@pytest.mark.parametrize("wrong", [lambda m, counts: m[:1], lambda m, counts: 1.0])
def test_weights_of_a_function_must_fit(wrong: object) -> None:
    reg = regularizer(normalize=wrong)
    with pytest.raises(ValueError, match=r"normalize must return weights .* = \[4, 4\], got"):
        reg(contracts.learner("maml", contracts.net(), "batched"), contracts.regression_batch())


def test_an_alignment_may_be_a_function_of_the_prototypes() -> None:
    learner, batch = contracts.learner("maml", contracts.net(), "batched"), contracts.class_batch()
    losses = [
        reg(learner, batch).relation_loss
        for align in ("sinkhorn", lambda prototypes: tr.relations.sinkhorn(prototypes), "none")
        for reg in [regularizer(align=align, loss_fn=cross_entropy)]
    ]
    close(losses[0], losses[1], EXACT)
    assert abs(losses[0] - losses[2]) > 1e-6


@pytest.mark.unchecked
def test_options_are_checked_when_they_are_set() -> None:
    reg = regularizer()
    for name, wrong, match in (
        ("lam", -1.0, "lam must be a finite number of at least 0, got -1.0"),
        ("temperature", 0.0, "temperature must be a finite number above 0, got 0.0"),
    ):
        before = getattr(reg, name)
        with pytest.raises(ValueError, match=match):
            setattr(reg, name, wrong)
        assert getattr(reg, name) == before
    with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
        reg.options = replace(reg.options, top_k=0)
    with pytest.raises(
        TypeError, match="options must be an Options, got 'sum'. dataclasses.replace"
    ):
        reg.options = "sum"
    other = tr.TRLearner(tr.FunctionEncoder(torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="which FunctionEncoder does not have"):
        other.options = replace(other.options, align="sinkhorn")
    with pytest.raises(FrozenInstanceError):
        reg.options.top_k = 2
