"""Class prototypes against the sample-by-sample means of `reference`."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import trlearner as tr
from trlearner.tasks.prototype import batch_prototypes, class_means

TIGHT = {"rtol": 0.0, "atol": 1e-9}
DIFFERENCES = {"rtol": 0.0, "atol": 1e-6}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(LABELS, st.data())
@settings(max_examples=50, deadline=None)
def test_class_means_equal_the_reference(labels: list[int], data: st.DataObject):
    h, y = draw(len(labels), 3), torch.tensor(labels)
    keep = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    for mask in (None, torch.tensor(keep)):
        real_h, real_y = reference.valid(h, mask), reference.valid(y, mask)
        means, counts = class_means(h, y, 4, mask)
        if len(real_h):
            assert_close(means, reference.prototypes(identity, real_h, real_y, 4), **TIGHT)
        else:
            assert_close(means, torch.zeros(4, 3, dtype=torch.float64), **TIGHT)
        assert counts.tolist() == [real_y.tolist().count(c) for c in range(4)]


@given(st.permutations(range(4)), LABELS)
@settings(max_examples=20, deadline=None)
def test_renumbering_classes_permutes_the_means(order: list[int], labels: list[int]):
    h, y = draw(len(labels), 3), torch.tensor(labels)
    means, counts = class_means(h, y, 4)
    other_means, other_counts = class_means(h, torch.tensor(order)[y], 4)
    assert_close(other_means[order], means, **TIGHT)
    assert_close(other_counts[order], counts, **TIGHT)


def test_gradients_equal_finite_differences():
    h, y = draw(6, 2).requires_grad_(), torch.tensor([0, 2, 0, 1, 2, 0])
    mask = torch.tensor([True, True, False, True, True, True])
    scale = draw(4, 2, seed=1)

    def total() -> torch.Tensor:
        return (class_means(h, y, 4, mask)[0] ** 2 * scale).sum()

    (found,) = torch.autograd.grad(total(), h)
    assert_close(found, reference.finite_difference(total, h), **DIFFERENCES)
    assert found[2].abs().max() == 0 and found[[0, 1, 3, 4, 5]].abs().min() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_batch_prototypes_equal_the_reference(masked: bool):
    h, y = draw(3, 5, 2), torch.tensor([[0, 1, 2, 0, 1], [2, 2, 2, 2, 2], [0, 1, 0, 1, 0]])
    mask = torch.tensor([[True] * 5, [True, False] * 2 + [True], [False, True, True, False, False]])
    support = tr.Samples(h, y, mask if masked else None, ways=3)
    means, counts = batch_prototypes(h, support)
    for i in range(3):
        x_i, y_i = (h[i], y[i]) if not masked else (h[i][mask[i]], y[i][mask[i]])
        assert_close(means[i], reference.prototypes(identity, x_i, y_i, 3), **TIGHT)
        assert counts[i].tolist() == [y_i.tolist().count(c) for c in range(3)]


@pytest.mark.parametrize(
    ("y", "ways", "got"),
    [
        (torch.zeros(2, 4, dtype=torch.long), None, r"torch.int64 targets \[2, 4\] with ways=None"),
        (torch.zeros(2, 4), None, r"torch.float32 targets \[2, 4\] with ways=None"),
        (torch.zeros(2, 4, 1, dtype=torch.long), 3, r"torch.int64 targets \[2, 4, 1\] with ways=3"),
    ],
)
def test_prototypes_need_labels_and_ways(y: torch.Tensor, ways: int | None, got: str):
    support = tr.Samples(torch.zeros(2, 4, 3), y, ways=ways)
    with pytest.raises(ValueError, match=rf"integer labels \[tasks, samples\].*{got}.*ways=5"):
        batch_prototypes(support.x, support)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_miscounts(dtype: torch.dtype):
    large = torch.tensor([[6e4], [6e4], [5e4]]).to(dtype)
    means, counts = class_means(large, torch.tensor([0, 0, 1]), 3)
    assert means.dtype == dtype
    assert torch.equal(means, torch.stack([large[0], large[2], torch.zeros(1, dtype=dtype)]))
    many, labels = torch.full((70_000, 1), 3.0).to(dtype), torch.zeros(70_000, dtype=torch.long)
    means, counts = class_means(many, labels, 1)
    assert means.tolist() == [[3.0]] and counts.tolist() == [70_000.0]
