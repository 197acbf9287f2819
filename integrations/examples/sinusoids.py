"""Sinusoids for the examples: regression tasks, and curves to tell apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Task = tuple[Tensor, Tensor, Tensor, Tensor]


def network() -> nn.Module:
    """The network of the classic experiment."""
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


def meta_batch(tasks: int = 8, shots: int = 5, queries: int = 10) -> list[Task]:
    """``(support x, support y, query x, query y)`` of sinusoids of random amplitude and phase."""
    return [sinusoid(shots, queries) for _ in range(tasks)]


def sinusoid(shots: int, queries: int) -> Task:
    amplitude, phase = 0.1 + 4.9 * torch.rand(()), torch.pi * torch.rand(())
    x = 10 * torch.rand(shots + queries, 1) - 5
    y = amplitude * torch.sin(x - phase)
    return x[:shots], y[:shots], x[shots:], y[shots:]


def stacked(batch: list[Task]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A meta-batch as four tensors ``[tasks, samples, 1]``."""
    x, y, xq, yq = (torch.stack(parts) for parts in zip(*batch, strict=True))
    return x, y, xq, yq


def curves(classes: int = 40, samples: int = 30, points: int = 16) -> Tensor:
    """Noisy curves ``[classes, samples, points]``: a class is an amplitude and a phase."""
    amplitude, phase = 1 + 4 * torch.rand(classes, 1, 1), 2 * torch.pi * torch.rand(classes, 1, 1)
    clean = amplitude * torch.sin(torch.linspace(-5, 5, points) - phase)
    return clean + 0.5 * torch.randn(classes, samples, points)


def tell(step: int, loss: Tensor, tasks: object) -> None:
    """A line every 50 steps."""
    if step % 50 == 0:
        related = tasks.term.loss.item()  # type: ignore[attr-defined]
        print(f"step {step:3}: loss {loss.item():.3f}, of the related tasks' models {related:.3f}")
