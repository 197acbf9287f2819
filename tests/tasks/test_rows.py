"""Tasks kept one by one are the same as tasks in stacks."""

import pytest
import torch

from trlearner.tasks.rows import Rows, number, part_of, unbound


@pytest.fixture
def tasks():
    return [{"w": torch.full((2,), float(i)), "b": torch.tensor(float(-i))} for i in range(4)]


def stacked(tasks):
    return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}


def same(one, other):
    assert list(one) == list(other)
    assert len(one) == len(other)
    for name in one:
        assert torch.equal(one[name], other[name])


def test_entries_are_stacks(tasks):
    same(Rows(iter(tasks)), stacked(tasks))


@pytest.mark.parametrize("part", [slice(1, 3), slice(0, 4), torch.tensor([3, 0, 0])])
def test_parts(tasks, part):
    one, other = part_of(Rows(tasks), part), part_of(stacked(tasks), part)
    same(one, other)
    assert number(one) == number(other) == len(other["b"])


def test_unbound(tasks):
    for fast in (Rows(tasks), stacked(tasks)):
        assert number(fast) == 4
        for found, task in zip(unbound(fast), tasks, strict=True):
            same(found, task)


def test_a_stack_has_the_graph_of_its_moment():
    """Nothing is kept of a look without gradients."""
    w = torch.ones(2, requires_grad=True)
    fast = Rows([{"w": w * 2}, {"w": w * 3}])
    with torch.no_grad():
        assert not fast["w"].requires_grad
    fast["w"].sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [5, 5]
