"""Meta-steps under autocast: every engine, with masks and the relation term."""

import pytest
import torch
from contracts import later, net
from torch import Tensor
from torch.nn import functional as F

import trlearner as tr


def unequal(labels: bool) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(0)

    def pair(samples: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(samples) % 3 if labels else torch.randn(samples, 3, generator=g)
        return torch.randn(samples, 2, generator=g), y

    return tr.TaskBatch.from_tasks([(pair(n), pair(n + 1)) for n in (3, 5, 4)])


def by_hand(p: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(p, y, reduction="none").mean()


@pytest.mark.parametrize("engine", ["batched", *later("higher", "loop", "channels_last", "auto")])
@pytest.mark.parametrize(
    ("loss_fn", "mixture"),
    [
        (F.cross_entropy, "logits"),
        (F.cross_entropy, "values"),
        (F.cross_entropy, "auto"),
        (by_hand, "logits"),
        (by_hand, "auto"),
        (F.mse_loss, "values"),
        (F.mse_loss, "auto"),
    ],
)
def test_tasks_of_unequal_sizes_train(engine: str, loss_fn, mixture: str):
    batch, model = unequal(labels=loss_fn is not F.mse_loss), net().float()

    def step(engine: str) -> tuple[Tensor, list[Tensor]]:
        learner = tr.MAML(model, lr=0.1, steps=2, engine=engine)
        encoder = tr.InputEncoder(model.body, dim=5)
        out = tr.TRLearner(encoder=encoder, loss_fn=loss_fn, mixture=mixture)(learner, batch)
        return out.loss, list(torch.autograd.grad(out.loss, learner.parameters()))

    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = step(engine)
    wanted, others = step("loop")
    torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0.02)
    found, truth = (torch.cat([g.flatten() for g in gs]) for gs in (gradients, others))
    assert found.isfinite().all() and F.cosine_similarity(found, truth, dim=0) > 0.95
