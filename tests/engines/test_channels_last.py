"""Engine ``channels_last``: images lie as it says, and everything comes out as with ``loop``."""

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import trlearner as tr
from trlearner.engines.channels_last import laid_out

TIGHT = {"rtol": 0.0, "atol": 1e-9}


class Watching(nn.Module):
    """Conv-2 that notes how what it is given, and what it makes of it, lies in memory."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(4) if norm else nn.GroupNorm(2, 4) for _ in range(2)]
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 4, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3, padding=1), norms[1], nn.Tanh()),
        )
        self.head = nn.Linear(4 * 9, 3)
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        self.seen += [features.is_contiguous(memory_format=torch.channels_last)]
        return self.head(features.flatten(1))


def batch(channels: int, masked: bool) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, channels, 6, 6, generator=g, dtype=torch.float64)
    y = torch.arange(9).repeat(3, 1) % 3
    mask = torch.arange(6) < torch.tensor([[6], [4], [5]]) if masked else None
    return tr.TaskBatch(tr.Samples(x[:, :6], y[:, :6], mask, ways=3), (x[:, 6:], y[:, 6:]), ways=3)


@pytest.mark.parametrize("channels", [3, *later(1)])
@pytest.mark.parametrize("norm", [False, *later(True)])
@pytest.mark.parametrize("masked", [False, *later(True)])
@pytest.mark.parametrize("kind", [tr.MAML, tr.MetaSGD, tr.TNet, tr.ANIL, tr.ProtoNet])
def test_it_is_loop_in_another_layout(kind, masked, norm, channels):
    found = {}
    for engine in ("loop", "channels_last"):
        torch.manual_seed(0)
        model = Watching(channels, norm).double()
        more = {"head": "head"} if kind is tr.ANIL else {}
        more |= {} if kind is tr.ProtoNet else {"lr": 0.2, "steps": 2}
        learner = kind(model, engine=engine, **more).double()
        encoder = tr.LabelledEncoder(None, dim=4, features=36 * channels, targets=3)
        reg = tr.TRLearner(encoder=encoder, loss_fn=cross_entropy, lam=0.5, chunk_size=2).double()
        before = {n: b.clone() for n, b in model.named_buffers()}
        out = reg(learner, batch(channels, masked))
        out.loss.backward()
        assert out.engine == engine
        assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
        if kind is not tr.ANIL:  # which stops at the head, after a first look of its own
            assert all(model.seen) == (engine == "channels_last")
        gradients = [p.grad for p in (*learner.parameters(), *reg.parameters())]
        found[engine] = [out.loss, out.predictions, *(g for g in gradients if g is not None)]
    assert len(found["loop"]) == len(found["channels_last"])
    for one, other in zip(found["loop"], found["channels_last"], strict=True):
        assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 3, 3, 4), (0, 2, 3, 3)])
def test_images_are_laid_out_and_keep_their_values_and_gradient(shape):
    x = torch.randn(shape, requires_grad=True)
    found = laid_out(x)
    assert torch.equal(found, x)
    assert found.stride()[1] == 1 and found.is_contiguous(memory_format=torch.channels_last)
    (g,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.equal(g, 2 * x)


@pytest.mark.parametrize("x", [torch.ones(2, 3), torch.ones(2, 3, 4), torch.ones(1, 2, 2, 2).int()])
def test_anything_else_stays_as_it_is(x):
    assert laid_out(x) is x
