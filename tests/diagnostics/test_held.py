"""What arguments of other kinds hold, and copies of them that hold something else."""

import torch
from torch import nn

from trlearner.diagnostics.doctor.held import rebuilt, tensors_held, unchained


class Cache:
    def __init__(self, *parts) -> None:
        self.layers = {0: parts}
        self.itself = self


def test_a_copy_holds_no_graph_and_the_same_modules():
    weight, module = torch.ones(2, requires_grad=True), nn.Linear(1, 1)
    product = 2 * weight
    cache = Cache(product, module)
    copied = unchained(cache)
    tensor, kept = copied.layers[0]
    assert kept is module and not tensor.requires_grad and torch.equal(tensor, product)
    copied.layers.clear()
    assert cache.layers == {0: (product, module)} and copied.itself is copied


def test_a_copy_may_hold_other_tensors():
    one, two, other = torch.ones(1), torch.zeros(1), torch.full((1,), 3.0)
    cache = Cache([one, two])
    assert [id(t) for t in tensors_held(cache)] == [id(one), id(two)]
    copied = rebuilt(cache, {id(one): other})
    assert copied.layers[0][0][0] is other and torch.equal(copied.layers[0][0][1], two)


def test_what_cannot_be_copied_stays_what_it_is():
    lines = (line for line in "ab")
    assert unchained(lines) is lines and tensors_held(lines) == []
