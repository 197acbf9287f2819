"""The network learns what scores foretell, and is believed only as far as they do."""

import pytest
import torch

from trlearner.samplers.network import Trainer, objective, pulls, trust


def trainer() -> Trainer:
    return Trainer(2, 16, lr=0.02, decay=0.1, generator=torch.Generator().manual_seed(0))


def fed(signal: float, looks: int = 150) -> tuple[Trainer, torch.Tensor]:
    """After look-aheads whose effects follow the first score, and noise."""
    made, g = trainer(), torch.Generator().manual_seed(1)
    weights = torch.full((8,), 1 / 8)
    for _ in range(looks):
        scores = torch.randn(8, 2, generator=g)
        made.learn(scores, signal * scores[:, 0] + torch.randn(8, generator=g), weights)
    return made, torch.tensor([[1.5, 0.0], [-1.5, 0.0]])


def test_it_finds_a_score_that_foretells() -> None:
    made, ends = fed(signal=1.0)
    assert made.trust > 0.5
    bad, good = made.logits(ends)
    assert good - bad > 1


def test_noise_is_not_believed() -> None:
    made, ends = fed(signal=0.0)
    assert made.trust < 0.2
    assert made.logits(ends).abs().max() < 0.3


def test_the_pull_is_the_gradient_along_logits() -> None:
    """Of sum_i w_i c_i, with w the softmax of the logits, in units of the spread."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    effects = torch.randn(5, dtype=torch.float64)
    weights = logits.softmax(0)
    (wanted,) = torch.autograd.grad((weights * effects).sum(), logits)
    weights = weights.detach()
    spread = (effects - (weights * effects).sum()).square().mean().sqrt()
    assert torch.allclose(pulls(effects, weights) * spread, wanted, atol=1e-12)


def test_effects_that_are_alike_or_broken_pull_nowhere() -> None:
    weights = torch.full((3,), 1 / 3)
    assert (pulls(torch.ones(3), weights).abs() < 1e-6).all()
    assert (pulls(torch.tensor([1.0, torch.nan, 2.0]), weights) == 0).all()


def test_at_rest_logits_are_effects_over_decay() -> None:
    pull = torch.tensor([-0.3, 0.1, 0.2]) / 3
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        objective(logits, pull, 1, 0.5).backward()
        optimizer.step()
    assert torch.allclose(logits.detach(), -3 * pull / 0.5, atol=1e-5)


def test_steps_may_hold_different_numbers_of_tasks() -> None:
    made = trainer()
    for tasks in (2, 5, 1):
        made.learn(torch.randn(tasks, 2), torch.randn(tasks), torch.full((tasks,), 1 / tasks))
    assert made.logits(torch.randn(3, 2)).shape == (3,)


def test_trust_grows_with_evidence() -> None:
    g = torch.Generator().manual_seed(0)
    gains = 0.3 + torch.randn(256, generator=g)
    found = [trust(gains[:n]) for n in (4, 64, 256)]
    assert found[0] == 0.0  # too few to tell
    mean, error = gains.mean(), gains.std() / 16
    assert found[2] == pytest.approx(float(1 - (error / mean) ** 2), rel=1e-5)
    assert found[1] < found[2]
    assert trust(-gains) == 0.0


def test_a_state_goes_on_alike() -> None:
    one, _ = fed(signal=1.0, looks=20)
    other = trainer()
    other.load_state_dict(one.state_dict())
    for made in (one, other):
        made.learn(torch.ones(8, 2), torch.arange(8.0), torch.full((8,), 1 / 8))
    scores = torch.randn(5, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(one.logits(scores), other.logits(scores))
