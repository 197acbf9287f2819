"""The matching of two tasks' classes against `reference`, pair by pair."""

import sys

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import trlearner as tr
from trlearner.relations.align import ITERATIONS, TEMPERATURE, similarity
from trlearner.relations.consistency import mix

TIGHT = {"rtol": 0.0, "atol": 1e-9}
DIFFERENCES = {"rtol": 0.0, "atol": 1e-6}
EXACT = {"rtol": 0.0, "atol": 0.0}

SEEDS = st.integers(0, 2**31)


def prototypes(seed: int, tasks: int = 3, classes: int = 4, features: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, classes, features, generator=g, dtype=torch.float64)


def relabelled(p: Tensor, task: int, order: list[int]) -> Tensor:
    """One task renumbers its classes: its new class c is its old class ``order[c]``."""
    return torch.stack([p[i][order] if i == task else p[i] for i in range(len(p))])


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_similarity_is_the_cosine(seed: int):
    p = prototypes(seed)
    found = similarity(p)
    for i in range(3):
        for j in range(3):
            rows = [[reference.cosine(u, v) for v in p[j]] for u in p[i]]
            assert_close(found[j, i], torch.stack([torch.stack(r) for r in rows]), **TIGHT)


@given(SEEDS, st.sampled_from([0.05, 0.1, 1.0]), st.sampled_from([1, 3, 20]))
@settings(max_examples=15, deadline=None)
def test_sinkhorn_equals_the_reference(seed: int, temperature: float, iterations: int):
    p = prototypes(seed)
    found = tr.relations.sinkhorn(p, temperature, iterations)
    assert found.shape == (3, 3, 4, 4)
    for i in range(3):
        for j in range(3):
            wanted = reference.sinkhorn(p[i], p[j], temperature, iterations)
            assert_close(found[j, i], wanted, **TIGHT)


def test_sinkhorn_defaults():
    p = prototypes(0)
    assert (TEMPERATURE, ITERATIONS) == (0.1, 20)
    assert_close(tr.relations.sinkhorn(p)[1, 0], reference.sinkhorn(p[0], p[1], 0.1, 20), **TIGHT)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_sinkhorn_is_nearly_doubly_stochastic(seed: int):
    found = tr.relations.sinkhorn(prototypes(seed))
    ones = torch.ones(3, 3, 4, dtype=torch.float64)
    assert found.min() >= 0
    # It ends with columns; rows are as good as so many iterations at this temperature make them.
    assert_close(found.sum(-2), ones, **TIGHT)
    assert_close(found.sum(-1), ones, rtol=0.0, atol=0.2)
    assert_close(tr.relations.sinkhorn(prototypes(seed), 1.0).sum(-1), ones, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("match", [tr.relations.sinkhorn, tr.relations.hungarian])
@given(SEEDS, st.permutations(range(4)), st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_renumbering_classes_permutes_rows_and_columns(match, seed: int, order, task: int):
    p = prototypes(seed)
    before, after = match(p), match(relabelled(p, task, order))
    for i in range(3):
        for j in range(3):
            wanted = before[j, i]
            wanted = wanted[order] if i == task else wanted  # its rows: the task's classes
            wanted = wanted[:, order] if j == task else wanted  # its columns: the model's classes
            assert_close(after[j, i], wanted, **TIGHT)


@given(SEEDS, st.permutations(range(4)))
@settings(max_examples=20, deadline=None)
def test_a_renumbered_copy_is_matched_with_itself(seed: int, order: list[int]):
    q, _ = torch.linalg.qr(prototypes(seed, tasks=1, classes=5)[0])
    p = torch.stack([q[:4], q[:4][order]])
    wanted = torch.eye(4, dtype=torch.float64)[
        :, order
    ]  # class order[c'] of task 0 is c' of task 1
    assert_close(tr.relations.hungarian(p)[1, 0], wanted, **EXACT)
    assert_close(tr.relations.sinkhorn(p)[1, 0], wanted, rtol=0.0, atol=1e-3)
    # What the model of task 1 says is translated to the classes of task 0.
    says = torch.zeros(4, dtype=torch.float64)
    says[0] = 1.0
    assert int((tr.relations.hungarian(p)[1, 0] @ says).argmax()) == order[0]


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_hungarian_equals_the_reference(seed: int, classes: int):
    p = prototypes(seed, classes=classes)
    found = tr.relations.hungarian(p)
    for i in range(3):
        for j in range(3):
            assert_close(found[j, i], reference.hungarian(p[i], p[j]), **EXACT)


def test_sinkhorn_gradients_equal_finite_differences():
    p = prototypes(0, tasks=2, classes=3, features=2).requires_grad_()
    scale = prototypes(1, tasks=4, classes=3, features=3).reshape(2, 2, 3, 3)

    def total() -> Tensor:
        return (tr.relations.sinkhorn(p, temperature=0.5, iterations=5) * scale).sum()

    (found,) = torch.autograd.grad(total(), p)
    assert found.abs().min() > 1e-6
    assert_close(found, reference.finite_difference(total, p), **DIFFERENCES)


@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_absent_classes_and_low_temperatures_stay_finite(temperature: float):
    p = prototypes(0)
    p[0, 1] = p[2] = 0
    p.requires_grad_()
    found = tr.relations.sinkhorn(p, temperature)
    (gradient,) = torch.autograd.grad(
        (found * prototypes(1, 9, 4, 4).reshape(found.shape)).sum(), p
    )
    assert torch.isfinite(found).all() and torch.isfinite(gradient).all()
    assert torch.isfinite(tr.relations.hungarian(p)).all()


def test_hungarian_has_no_gradient():
    assert not tr.relations.hungarian(prototypes(0).requires_grad_()).requires_grad


def test_hungarian_of_one_task():
    assert_close(
        tr.relations.hungarian(prototypes(0, tasks=1))[0, 0], torch.eye(4).double(), **EXACT
    )


def test_hungarian_needs_scipy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(
        ImportError, match="needs SciPy: pip install scipy. Or use align='sinkhorn'"
    ):
        tr.relations.hungarian(prototypes(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_single_even_where_a_class_is_absent(dtype: torch.dtype):
    p = prototypes(0).to(dtype)
    p[0, 1] = 0
    p.requires_grad_()
    for match in (similarity, tr.relations.sinkhorn, tr.relations.hungarian):
        found = match(p)
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert torch.equal(found, match(p.float()))
    (gradient,) = torch.autograd.grad(tr.relations.sinkhorn(p).square().sum(), p)
    assert gradient.isfinite().all()


def test_autocast_does_not_coarsen_cosines():
    p = prototypes(0).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = [tr.relations.sinkhorn(p), tr.relations.hungarian(p)]
    assert torch.equal(found[0], tr.relations.sinkhorn(p)) and torch.equal(
        found[1], tr.relations.hungarian(p)
    )


@pytest.mark.parametrize("mixture", ["values", "logits"])
def test_answers_in_half_precision_are_mixed_by_it(mixture: str):
    p = prototypes(0).float()
    says = torch.randn(3, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.full((3, 3), 0.5).fill_diagonal_(0)
    found = mix(says.half(), weights, mixture, tr.relations.sinkhorn(p.half()))
    wanted = mix(says, weights, mixture, tr.relations.sinkhorn(p))
    assert_close(found.float(), wanted, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float):
    with pytest.raises(ValueError, match=r"temperature must be a finite number above 0, got"):
        tr.relations.sinkhorn(prototypes(0), temperature)


@pytest.mark.unchecked
@pytest.mark.parametrize("iterations", [0, -1, 2.0])
def test_sinkhorn_needs_an_iteration(iterations):
    with pytest.raises(ValueError, match="iterations must be a whole number of at least 1, got"):
        tr.relations.sinkhorn(prototypes(0), iterations=iterations)


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_prototypes_of_any_size_have_the_same_cosines(size: float):
    p = prototypes(0).float()
    assert_close(similarity(size * p), similarity(p), rtol=0.0, atol=1e-5)
