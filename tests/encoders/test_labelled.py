"""The learned set encoder against `reference`, and widths that are found at the first batch."""

import copy

import contracts
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.testing import assert_close

import trlearner as tr
from trlearner.base.functional import tensors

TIGHT = {"rtol": 0.0, "atol": 1e-9}
DIFFERENCES = {"rtol": 0.0, "atol": 1e-6}
EXACT = {"rtol": 0.0, "atol": 0.0}


def features() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()


def learner() -> tr.Learner:
    torch.manual_seed(2)
    return tr.MAML(nn.Linear(2, 2).double(), lr=0.1, steps=2, engine="loop")


def encoder(g: nn.Module | None = None, **options: object) -> tr.LabelledEncoder:
    torch.manual_seed(0)
    wide = {"features": 2 if g is None else 4, "targets": 2, "hidden": 5, **options}
    return tr.LabelledEncoder(g, dim=3, own=True, **wide).double()


def encode(e: tr.Encoder, batch: tr.TaskBatch) -> Tensor:
    owner = learner()
    e.prepare(owner, batch)
    return e.encode(tensors(e), batch, contracts.models(owner))


def weights(e: tr.LabelledEncoder) -> dict[str, Tensor]:
    return {
        "A": e.of_features.weight,
        "a": e.of_features.bias,
        "B": e.of_targets.weight,
        "C": e.out.weight,
        "c": e.out.bias,
    }


def regression(sizes: list[int], seed: int = 0, targets: tuple[int, ...] = (2,)):
    g = torch.Generator().manual_seed(seed)

    def pair(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 2, generator=g, dtype=torch.float64)
        return x, torch.randn(n, *targets, generator=g, dtype=torch.float64)

    return [(pair(n), pair(2)) for n in sizes]


def classes(labels: list[list[int]], seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    tasks = []
    for row in labels:
        pair = torch.randn(len(row), 2, generator=g, dtype=torch.float64), torch.tensor(row)
        tasks.append((pair, (pair[0][:1], pair[1][:1])))
    return tasks


LABELS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4)


# ---- the formula --------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_regression_equals_the_reference(sizes: list[int], plain: bool):
    g = None if plain else features()
    e, tasks = encoder(g), regression(sizes)
    found = encode(e, tr.TaskBatch.from_tasks(tasks))
    for row, ((x, y), _) in zip(found, tasks, strict=True):
        wanted = reference.labelled_regression_embedding(g or (lambda v: v), weights(e), x, y)
        assert_close(row, wanted, **TIGHT)


@given(LABELS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_classification_equals_the_reference(labels: list[list[int]], plain: bool):
    g = None if plain else features()
    e, tasks = encoder(g), classes(labels)
    found = encode(e, tr.TaskBatch.from_tasks(tasks, ways=4))
    for row, ((x, y), _) in zip(found, tasks, strict=True):
        wanted = reference.labelled_classification_embedding(
            g or (lambda v: v), weights(e), x, y, ways=4
        )
        assert_close(row, wanted, **TIGHT)


@given(LABELS, st.permutations(range(4)), st.data())
@settings(max_examples=25, deadline=None)
def test_a_task_may_number_its_classes_as_it_likes(labels, order, data: st.DataObject):
    e, tasks = encoder(features()), classes(labels)
    found = encode(e, tr.TaskBatch.from_tasks(tasks, ways=4))
    chosen = data.draw(st.integers(0, len(tasks) - 1))
    (x, y), query = tasks[chosen]
    tasks[chosen] = ((x, torch.tensor(order)[y]), query)
    assert_close(encode(e, tr.TaskBatch.from_tasks(tasks, ways=4)), found, **TIGHT)


@given(st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_the_order_of_samples_does_not_matter(order: list[int]):
    e = encoder()
    (((x, y), query),) = regression([5])
    found = encode(e, tr.TaskBatch.from_tasks([((x, y), query)]))
    shuffled = encode(e, tr.TaskBatch.from_tasks([((x[order], y[order]), query)]))
    assert_close(shuffled, found, **TIGHT)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_masked_task_embeds_as_it_does_alone(kind: str):
    e = encoder(features())
    if kind == "regression":
        tasks, ways = regression([4, 1, 3]), None
    else:
        tasks, ways = classes([[0, 1, 2, 1], [3], [2, 2, 0]]), 4
    together = encode(e, tr.TaskBatch.from_tasks(tasks, ways=ways))
    alone = [encode(e, tr.TaskBatch.from_tasks([task], ways=ways))[0] for task in tasks]
    assert_close(together, torch.stack(alone), **TIGHT)


def test_it_tells_tasks_apart_that_share_their_inputs():
    ((x, y), query), _ = regression([4, 4])
    found = encode(encoder(), tr.TaskBatch.from_tasks([((x, y), query), ((x, -y), query)]))
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("targets", [(), (1,), (2, 3)])
def test_targets_of_any_shape_are_flattened(targets: tuple[int, ...]):
    width = int(torch.tensor(targets).prod()) if targets else 1
    e, tasks = encoder(targets=width), regression([3, 3], targets=targets)
    found = encode(e, tr.TaskBatch.from_tasks(tasks))
    for row, ((x, y), _) in zip(found, tasks, strict=True):
        wanted = reference.labelled_regression_embedding(lambda v: v, weights(e), x, y)
        assert_close(row, wanted, **TIGHT)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_gradients_equal_finite_differences(kind: str):
    g = features()
    e = encoder(g)
    if kind == "regression":
        batch = tr.TaskBatch.from_tasks(regression([3, 1]))
        trained = [*g.parameters(), *weights(e).values()]
    else:
        batch = tr.TaskBatch.from_tasks(classes([[0, 1, 1], [3]]), ways=4)
        trained = [*g.parameters(), *(w for n, w in weights(e).items() if n != "B")]
    scale = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def total() -> Tensor:
        return (encode(e, batch) ** 2 * scale).sum()

    for p, found in zip(trained, torch.autograd.grad(total(), trained), strict=True):
        assert found.abs().max() > 1e-6
        assert_close(found, reference.finite_difference(total, p), **DIFFERENCES)


def test_detach_trains_the_set_encoder_but_not_the_features():
    g = features()
    e, batch = encoder(g, detach=True), tr.TaskBatch.from_tasks(regression([3, 2]))
    found = encode(e, batch)
    assert_close(found, encode(encoder(g), batch), **EXACT)
    found.square().sum().backward()
    assert [p.grad for p in g.parameters()] == [None, None]
    assert all(w.grad.abs().max() > 0 for w in weights(e).values())


def test_prototypes_equal_the_reference():
    g, owner = features(), learner()
    e, tasks = encoder(g), classes([[0, 1, 2, 1], [3], [2, 2, 0]])
    batch = tr.TaskBatch.from_tasks(tasks, ways=4)
    found = e.prototypes(tensors(e), batch, contracts.models(owner))
    for rows, ((x, y), _) in zip(found, tasks, strict=True):
        assert_close(rows, reference.prototypes(g, x, y, 4), **TIGHT)


# ---- what is refused ----------------------------------------------------------------------------


def test_the_announced_widths_must_be_right():
    batch = tr.TaskBatch.from_tasks(regression([3, 2]))
    with pytest.raises(
        ValueError, match=r"features must be the width of g\(x\), which is 4, got 7"
    ):
        encode(encoder(features(), features=7), batch)
    with pytest.raises(
        ValueError, match="targets must be the width of a target, which is 2, got 1"
    ):
        encode(encoder(targets=1), batch)


def test_labels_need_their_number():
    with pytest.raises(ValueError, match=r"integer labels .* with ways=None.*ways=5"):
        encode(encoder(), tr.TaskBatch.from_tasks(classes([[0, 1], [1, 0]])))


# ---- widths that are found at the first batch ---------------------------------------------------


def lazy(g: nn.Module | None = None) -> tr.LabelledEncoder:
    torch.manual_seed(0)
    return tr.LabelledEncoder(g, dim=3, hidden=5, own=True).double()


def waiting(e: nn.Module) -> list[str]:
    return [n for n, p in e.named_parameters() if isinstance(p, UninitializedParameter)]


def regularizer(e: tr.Encoder) -> tr.TRLearner:
    return tr.TRLearner(encoder=e, lam=0.5).double()


def three() -> tr.TaskBatch:
    return tr.TaskBatch.from_tasks(regression([3, 2, 4]))


@pytest.mark.parametrize("grad", [True, False])
def test_widths_are_found_without_touching_the_random_stream(grad: bool):
    e, owner = lazy(features()), learner()
    reg = regularizer(e)
    assert waiting(e) == ["of_features.weight", "of_features.bias", "of_targets.weight"]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        out = reg(owner, three())
    assert torch.equal(torch.get_rng_state(), before)
    assert waiting(e) == [] and torch.isfinite(out.loss)
    assert e.of_features.weight.shape == (5, 4) and e.of_targets.weight.shape == (5, 2)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in e.parameters())
    assert e.of_features.weight.std() > 0.1


def test_after_the_first_batch_it_equals_the_reference():
    e, tasks = lazy(), regression([3, 2])
    found = encode(e, tr.TaskBatch.from_tasks(tasks))
    for row, ((x, y), _) in zip(found, tasks, strict=True):
        wanted = reference.labelled_regression_embedding(lambda v: v, weights(e), x, y)
        assert_close(row, wanted, **TIGHT)
    with pytest.raises(
        ValueError, match="targets must be the width of a target, which is 1, got 2"
    ):
        encode(e, tr.TaskBatch.from_tasks(regression([3, 2], targets=(1,))))


def test_a_batch_of_labels_settles_the_widths_as_well():
    e, tasks = lazy(features()), classes([[0, 1], [1, 2, 2]])
    found = encode(e, tr.TaskBatch.from_tasks(tasks, ways=3))
    assert waiting(e) == [] and e.of_features.weight.shape == (5, 4)
    for row, ((x, y), _) in zip(found, tasks, strict=True):
        wanted = reference.labelled_classification_embedding(
            e.extractor.module, weights(e), x, y, ways=3
        )
        assert_close(row, wanted, **TIGHT)


def test_an_optimizer_made_before_the_first_batch_trains_them():
    e, owner = lazy(), learner()
    reg = regularizer(e)
    optimizer = torch.optim.Adam([*owner.parameters(), *reg.parameters()], lr=0.1)
    losses, before = [], {}
    for step in range(2):
        out = reg(owner, three())
        if step == 0:
            before = {n: p.detach().clone() for n, p in e.named_parameters()}
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    after = dict(e.named_parameters())
    # The bias of the output shifts all embeddings, which the cosine does see.
    assert len(before) == 5
    assert all((after[n] - before[n]).abs().max() > 1e-3 for n in before)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("fresh", [True, False])
def test_state_dict_round_trip(fresh: bool):
    first, owner = regularizer(lazy(features())), learner()
    wanted = first(owner, three()).loss
    torch.manual_seed(99)
    again = tr.LabelledEncoder(features(), dim=3, hidden=5, own=True).double()
    second = regularizer(again)
    if not fresh:
        second(owner, three())
    second.load_state_dict(first.state_dict())
    assert waiting(second) == []
    assert_close(second(owner, three()).loss, wanted, **EXACT)


def test_saving_before_the_first_batch_keeps_waiting():
    first, second = lazy(), lazy()
    second.load_state_dict(first.state_dict())
    assert waiting(second) == waiting(first) != []
    assert torch.isfinite(encode(copy.deepcopy(first), three())).all()
    assert waiting(first) != []


def test_nothing_is_settled_where_the_relation_term_is_skipped():
    e = lazy()
    reg = regularizer(e)
    reg.lam = 0.0
    assert torch.isfinite(reg(learner(), three()).loss)
    assert len(waiting(e)) == 3


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("extractor", [None, nn.Linear(3, 5)])
def test_an_encoder_for_a_batch_has_all_its_parameters(
    labels: bool, extractor: nn.Module | None
) -> None:
    x = torch.rand(3, 6, 3)
    y = (torch.arange(6) % 2).expand(3, 6) if labels else torch.rand(3, 6, 2)
    batch = tr.TaskBatch((x, y), (x, y), ways=2 if labels else None)
    encoder = tr.LabelledEncoder.for_batch(batch, 4, extractor, hidden=7, own=True)
    shapes = {name: list(p.shape) for name, p in encoder.named_parameters()}
    assert shapes["of_features.weight"] == [7, 3 if extractor is None else 5]
    assert shapes.get("of_targets.weight") == (None if labels else [7, 2])
    loss_fn = nn.functional.cross_entropy if labels else nn.functional.mse_loss
    out = tr.TRLearner(encoder, loss_fn=loss_fn)(tr.MAML(nn.Linear(3, 2), steps=1), batch)
    out.loss.backward()
    assert {n: list(p.shape) for n, p in encoder.named_parameters()} == shapes
    assert all(p.grad is not None for p in encoder.parameters())


def test_classes_and_numbers_are_told_apart() -> None:
    x = torch.rand(3, 6, 3)
    numbers = tr.TaskBatch((x, x), (x, x))
    with pytest.raises(ValueError, match=r"ways=2 is for labels and targets=1 for numbers"):
        tr.LabelledEncoder(None, dim=4, ways=2, targets=1)
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4, features=3, ways=2))
    with pytest.raises(
        ValueError, match="is for class labels, but the batch's targets are numbers"
    ):
        reg(tr.MAML(nn.Linear(3, 3), steps=1), numbers)
    labels = torch.zeros(3, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="batch must say how many classes there are"):
        tr.LabelledEncoder.for_batch(tr.TaskBatch((x, labels), (x, labels)), 4)
