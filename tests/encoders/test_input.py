"""The paper's encoder against `reference`: a task is the mean of its inputs' features."""

import contracts
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import trlearner as tr
from trlearner.base.functional import tensors

TIGHT = {"rtol": 0.0, "atol": 1e-9}
DIFFERENCES = {"rtol": 0.0, "atol": 1e-6}
EXACT = {"rtol": 0.0, "atol": 0.0}


def extractor() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()


def learner() -> tr.Learner:
    return tr.MAML(nn.Linear(2, 1).double(), steps=1)


def draw_tasks(sizes: list[tuple[int, int]], seed: int = 0):
    g = torch.Generator().manual_seed(seed)

    def pair(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 2, generator=g, dtype=torch.float64)
        return x, torch.randn(n, 1, generator=g, dtype=torch.float64)

    return [(pair(s), pair(q)) for s, q in sizes]


def encode(encoder: tr.Encoder, batch: tr.TaskBatch, owner: tr.Learner | None = None) -> Tensor:
    owner = owner or learner()
    return encoder.encode(tensors(encoder), batch, contracts.models(owner))


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@given(SIZES, st.sampled_from(["support", "all"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_it_equals_the_reference(sizes: list[tuple[int, int]], metadata: str, plain: bool):
    tasks, g = draw_tasks(sizes), None if plain else extractor()
    encoder = tr.InputEncoder(g, dim=2 if plain else 4, metadata=metadata)
    found = encode(encoder, tr.TaskBatch.from_tasks(tasks))
    for e, (support, query) in zip(found, tasks, strict=True):
        inputs = [support[0], query[0]] if metadata == "all" else [support[0]]
        assert_close(e, reference.input_embedding(g or (lambda x: x), inputs), **TIGHT)


def test_whole_numbers_are_averaged_in_the_precision_of_the_model():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(100, (3, 7, 2), generator=g), torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 3)
    batch = tr.TaskBatch((x, y), (x, y), ways=2)
    encoder = tr.InputEncoder(None, dim=2)
    assert_close(encode(encoder, batch), x.double().mean(1), **TIGHT)
    owner = learner()
    found = encoder.prototypes({}, batch, contracts.models(owner))
    wanted = torch.stack([x[:, :3].double().mean(1), x[:, 3:].double().mean(1)], 1)
    assert_close(found, wanted, **TIGHT)


def test_a_masked_task_embeds_as_it_does_alone():
    tasks = draw_tasks([(5, 2), (2, 6), (3, 3)])
    encoder = tr.InputEncoder(extractor(), dim=4, metadata="all")
    together = encode(encoder, tr.TaskBatch.from_tasks(tasks))
    alone = [encode(encoder, tr.TaskBatch.from_tasks([task]))[0] for task in tasks]
    assert_close(together, torch.stack(alone), **TIGHT)


@pytest.mark.parametrize("masked", ["support", "query"])
def test_one_set_may_be_masked_and_the_other_not(masked: str):
    sizes = [(5, 3), (2, 3)] if masked == "support" else [(3, 5), (3, 2)]
    tasks = draw_tasks(sizes)
    found = encode(tr.InputEncoder(None, dim=2, metadata="all"), tr.TaskBatch.from_tasks(tasks))
    wanted = [torch.cat([support[0], query[0]]).mean(0) for support, query in tasks]
    assert_close(found, torch.stack(wanted), **TIGHT)


def test_it_sees_no_labels():
    batch = tr.TaskBatch.from_tasks(draw_tasks([(3, 2), (3, 2)]))
    relabelled = tr.TaskBatch((batch.support.x, -batch.support.y), (batch.query.x, batch.query.y))
    encoder = tr.InputEncoder(extractor(), dim=4, metadata="all")
    assert_close(encode(encoder, relabelled), encode(encoder, batch), **EXACT)


@pytest.mark.parametrize("metadata", ["support", "all"])
def test_gradients_equal_finite_differences(metadata: str):
    g = extractor()
    encoder = tr.InputEncoder(g, dim=4, metadata=metadata)
    batch = tr.TaskBatch.from_tasks(draw_tasks([(3, 1), (1, 4)]))
    scale = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def total() -> Tensor:
        return (encode(encoder, batch) ** 2 * scale).sum()

    for p, found in zip(g.parameters(), torch.autograd.grad(total(), g.parameters()), strict=True):
        assert found.abs().min() > 1e-6
        assert_close(found, reference.finite_difference(total, p), **DIFFERENCES)


def test_detach_trains_the_extractor_by_nothing():
    g = extractor()
    batch = tr.TaskBatch.from_tasks(draw_tasks([(3, 2), (4, 2)]))
    encoder = tr.InputEncoder(g, dim=4, detach=True)
    found = encode(encoder, batch)
    assert not found.requires_grad
    assert_close(found, encode(tr.InputEncoder(g, dim=4), batch).detach(), **EXACT)
    labels = torch.tensor([[0, 1, 1, 0]] * 2)
    x = draw_tasks([(4, 1)])[0][0][0].repeat(2, 1, 1)
    classes = tr.TaskBatch((x, labels), (x, labels), ways=2)
    models = contracts.models(learner())
    assert not encoder.prototypes(tensors(encoder), classes, models).requires_grad


@pytest.mark.parametrize("detach", [False, True])
def test_detach_in_a_meta_step(detach: bool):
    """The task loss still trains the shared features, the relation term does only without it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    owner = tr.MAML(model, lr=0.1, steps=0, engine="loop")
    g = extractor()
    reg = tr.TRLearner(encoder=tr.InputEncoder(g, dim=4, detach=detach, own=True), lam=0.5).double()
    out = reg(owner, tr.TaskBatch.from_tasks(draw_tasks([(3, 2)] * 3)))
    # Zero steps: all models are the same, so nothing depends on their mixture.
    assert_close(out.loss, 1.5 * out.task_loss, **TIGHT)
    owner.steps = 2
    reg(owner, tr.TaskBatch.from_tasks(draw_tasks([(3, 2)] * 3))).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert reg.relation.weight.grad.abs().max() > 0
    assert [p.grad is None for p in g.parameters()] == [detach, detach]


def test_prototypes_equal_the_reference():
    g, owner = extractor(), learner()
    x = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 2], [0, 0, 1, 1, 1]])
    mask = torch.tensor([[True] * 5, [True, False, True, True, False], [False] + [True] * 4])
    batch = tr.TaskBatch(tr.Samples(x, y, mask), (x, y), ways=3)
    encoder = tr.InputEncoder(g, dim=4)
    found = encoder.prototypes(tensors(encoder), batch, contracts.models(owner))
    for i in range(3):
        wanted = reference.prototypes(g, x[i][mask[i]], y[i][mask[i]], 3)
        assert_close(found[i], wanted, **TIGHT)


def test_the_announced_width_must_be_right():
    batch = tr.TaskBatch.from_tasks(draw_tasks([(3, 2), (3, 2)]))
    message = "dim must be the width of the extractor's features, which is 4, got 64. Pass dim=4"
    with pytest.raises(ValueError, match=message):
        encode(tr.InputEncoder(extractor(), dim=64), batch)


@pytest.mark.unchecked
def test_metadata_must_be_known():
    with pytest.raises(ValueError, match="metadata must be 'support' or 'all', got 'query'"):
        tr.InputEncoder(extractor(), dim=4, metadata="query")


def test_state_dict_round_trip():
    one, two = extractor(), nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    batch = tr.TaskBatch.from_tasks(draw_tasks([(3, 2), (4, 2)]))
    first, second = (tr.InputEncoder(g, dim=4, own=True) for g in (one, two))
    assert (encode(first, batch) - encode(second, batch)).abs().max() > 1e-2
    second.load_state_dict(first.state_dict())
    assert_close(encode(second, batch), encode(first, batch), **EXACT)
