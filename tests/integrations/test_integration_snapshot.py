"""A module as it was: later changes do not reach it, and asking it changes nothing."""

import contracts
import torch
from contracts import close
from integration import normalized
from torch import Tensor, nn
from trlearner.integrations.snapshot import has_graph, snapshot

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)


def test_it_keeps_the_parameters_and_their_graph() -> None:
    model, start = contracts.net(), contracts.net()
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            module._parameters[name] = p * 2  # as torchopt does
    ours, theirs = snapshot(model), model(X)
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            module._parameters[name] = p * 0
    close(ours(X), theirs, 1e-12)
    assert ours(X).requires_grad and has_graph(model) and not has_graph(start)


def test_it_answers_by_the_statistics_of_then() -> None:
    model = normalized().eval()
    ours, theirs = snapshot(model), model(X)
    model.train()
    model(10 * X)
    model.eval()
    close(ours(X), theirs, 1e-12)
    assert (model(X) - theirs).abs().max() > 1e-3


def test_asking_leaves_no_trace() -> None:
    model = normalized()
    ours, before = snapshot(model), {n: b.clone() for n, b in model.named_buffers()}
    first = ours(X)
    ours(10 * X)
    close(ours(X), first, 1e-12)
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())


def test_parameters_may_be_given_and_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.there = nn.Linear(2, 2, bias=False)
            self.back = nn.Linear(2, 2, bias=False)
            self.back.weight = self.there.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.back(self.there(x))

    model, x = Tied(), torch.rand(3, 2)
    weight = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    close(snapshot(model, {"there.weight": weight})(x), x @ weight.T @ weight.T, 1e-6)
