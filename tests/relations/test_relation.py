"""The similarity layer."""

import pytest
import reference
import torch
from contracts import close
from hypothesis import given, settings
from hypothesis import strategies as st

import trlearner as tr
from trlearner.relations.similarity import head_relations

TIGHT = 1e-9


def draw(seed: int, tasks: int, dim: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    # No view is so short that the epsilon in its length shows.
    embeddings = torch.randn(tasks, dim, generator=g, dtype=torch.float64)
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
    return embeddings, 0.5 + torch.rand(heads, dim, generator=g, dtype=torch.float64)


sizes = {
    "seed": st.integers(0, 1000),
    "tasks": st.integers(1, 6),
    "dim": st.integers(1, 5),
    "heads": st.integers(1, 4),
}


@given(**sizes)
@settings(deadline=None, max_examples=30)
def test_equals_reference(seed: int, tasks: int, dim: int, heads: int) -> None:
    embeddings, weight = draw(seed, tasks, dim, heads)
    close(
        tr.relation_matrix(embeddings, weight), reference.relation_matrix(embeddings, weight), TIGHT
    )


@given(**sizes)
@settings(deadline=None, max_examples=30)
def test_symmetric_with_unit_diagonal(seed: int, tasks: int, dim: int, heads: int) -> None:
    m = tr.relation_matrix(*draw(seed, tasks, dim, heads))
    close(m, m.T, 1e-15)
    close(m.diagonal(), torch.ones(tasks).double(), TIGHT)
    assert (m.abs() <= 1 + 1e-12).all()


@given(**sizes, scale=st.floats(0.1, 100))
@settings(deadline=None, max_examples=30)
def test_rescaling_a_head_changes_nothing(
    seed: int, tasks: int, dim: int, heads: int, scale: float
) -> None:
    embeddings, weight = draw(seed, tasks, dim, heads)
    scaled = weight.clone()
    scaled[0] *= scale
    close(tr.relation_matrix(embeddings, scaled), tr.relation_matrix(embeddings, weight), TIGHT)


@given(**sizes)
@settings(deadline=None, max_examples=30)
def test_permuting_tasks_permutes_rows_and_columns(
    seed: int, tasks: int, dim: int, heads: int
) -> None:
    embeddings, weight = draw(seed, tasks, dim, heads)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    m = tr.relation_matrix(embeddings, weight)
    close(tr.relation_matrix(embeddings[order], weight), m[order][:, order], 1e-12)


def test_gradient_equals_finite_differences() -> None:
    embeddings, weight = (t.requires_grad_() for t in draw(0, 4, 3, 2))
    probe = torch.randn(4, 4).double()

    def value() -> torch.Tensor:
        return (tr.relation_matrix(embeddings, weight) * probe).sum()

    found = torch.autograd.grad(value(), (embeddings, weight))
    for gradient, tensor in zip(found, (embeddings, weight), strict=True):
        close(gradient, reference.finite_difference(value, tensor), 1e-7)


def test_zero_embedding_is_related_to_nothing_and_has_finite_gradients() -> None:
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, -1.0]], requires_grad=True)
    m = tr.relation_matrix(embeddings, torch.ones(2, 2))
    assert (m[0] == 0).all()
    m.sum().backward()
    assert torch.isfinite(embeddings.grad).all()


def test_heads_average_to_the_matrix_and_differ() -> None:
    relation = tr.TaskRelation(dim=6, heads=3)
    embeddings = torch.randn(4, 6)
    heads = head_relations(embeddings, relation.weight)
    close(relation(embeddings), heads.mean(0), 1e-6)
    assert (heads[0] - heads[1]).abs().max() > 1e-4


def test_start_is_near_one_and_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    weight = tr.TaskRelation(dim=64, heads=4).weight
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.9 < weight.mean() < 1.1
    assert 0.05 < weight.std() < 0.2
    same = tr.TaskRelation(dim=64, heads=4, generator=torch.Generator().manual_seed(0)).weight
    other = tr.TaskRelation(dim=64, heads=4, generator=torch.Generator().manual_seed(1)).weight
    assert torch.equal(weight, same)
    assert not torch.equal(weight, other)


@pytest.mark.parametrize(
    ("options", "match"), [({"dim": 0}, "dim must be"), ({"heads": 0}, "heads must be")]
)
def test_sizes_must_be_positive(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tr.TaskRelation(**{"dim": 4, **options})


@pytest.mark.unchecked
def test_one_dimension_tells_no_tasks_apart() -> None:
    with pytest.warns(
        UserWarning, match="dim must be at least 2 to tell tasks apart, got 1: "
    ) as w:
        relation = tr.TaskRelation(dim=1)
    assert [warning.filename for warning in w] == [__file__]
    close(relation(torch.tensor([[1.0], [2.0], [-3.0]])).abs(), torch.ones(3, 3), 1e-6)
    tr.TaskRelation(dim=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_zero_embeddings_stay_finite(dtype: torch.dtype) -> None:
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, -1.0]], dtype=dtype)
    m = tr.relation_matrix(embeddings, torch.ones(2, 2, dtype=dtype))
    assert m.dtype == torch.float32
    close(m, torch.diag(torch.tensor([0.0, 1.0, 1.0])), 1e-6)


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_embeddings_of_any_size_are_related_alike(size: float) -> None:
    e, w = (t.float() for t in draw(0, 5, 4, 2))
    large = (size * e).requires_grad_()
    found = tr.relation_matrix(large, w)
    close(found, tr.relation_matrix(e, w), 1e-5)
    (gradient,) = torch.autograd.grad(found.square().sum(), large)
    e.requires_grad_()
    (wanted,) = torch.autograd.grad(tr.relation_matrix(e, w).square().sum(), e)
    close(
        gradient * size, wanted, 1e-4
    )  # the gradient of a direction falls with the vector's length
