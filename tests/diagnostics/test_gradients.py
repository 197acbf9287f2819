"""Products of the two losses' gradients, against the gradients themselves."""

import pytest
import torch

from trlearner.diagnostics.monitor.gradients import products


def test_they_are_those_of_the_two_gradients() -> None:
    a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)
    own, related, lam = (a**2).sum(), (a * b).sum() + b.sum() ** 3, 0.5
    found = products(own + lam * related, own.clone(), lam, [a, b, unused])
    # d own = (2, 4 | 0), lam * d related = (1.5, 1.5 | 0.5 * (3 + 27))
    assert found["own_own"].item() == pytest.approx(20)
    assert found["own_related"].item() == pytest.approx(9)
    assert found["related_related"].item() == pytest.approx(1.5**2 * 2 + 15**2)


def test_without_a_relation_term_there_is_nothing_to_compare() -> None:
    a = torch.ones(1, requires_grad=True)
    assert products(a.sum(), a.sum(), 0.0, [a]) == {}
