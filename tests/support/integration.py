"""What every adapter in `integrations` promises; each of their tests calls these on its peer's loop."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from engines.test_memory import ALLOWED, resident
from regularizer.test_collect import engines, regularizer

Loop = Callable[[nn.Module, tr.TaskBatch, tr.TRLearner | None], Tensor]
"""The peer's loop: the loss of one meta-step, with the penalty if there is a regularizer."""

Build = Callable[[], nn.Module]
MEMORY_STEPS, WARM = 500, 100
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-6}
"""How far a gradient may be off, relative to its norm."""


def normalized() -> nn.Module:
    """A network whose running statistics move in training mode."""
    model = contracts.net()
    model.body = nn.Sequential(model.body, nn.BatchNorm1d(contracts.HIDDEN)).double()
    return model


def gradient_is_the_engines(
    loop: Loop, build: Build = contracts.net, twin: Build | None = None
) -> None:
    """Loss and outer gradient, the regularizer's included, equal those of our own engine `loop`."""
    for dtype, tolerance in TOLERANCES.items():
        batch = contracts.regression_batch().to(dtype)
        model, ours = build().to(dtype), (twin or build)().to(dtype)
        reg, other = regularizer(model).to(dtype), regularizer(ours).to(dtype)
        expected = engines(ours, other, batch)
        loss = loop(model, batch, reg)
        found = contracts.gradients(loss, model, reg)
        wanted = contracts.gradients(expected.loss, ours, other)
        close(loss, expected.loss, tolerance)
        equal(found, wanted, tolerance)


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Two gradients by name; how far they are apart is printed (``pytest -s``)."""
    assert list(found) == list(wanted)
    for name, gradient in wanted.items():
        close(found[name], gradient, tolerance)
    a, b = (torch.cat([g.flatten() for g in gs.values()]) for gs in (found, wanted))
    assert b.norm() > 1e-3 and a.dtype == b.dtype
    print(f"{a.dtype}: gradients are off by {(a - b).norm() / b.norm():.1e}")
    assert (a - b).norm() < tolerance * b.norm()


def nothing_changes_without_the_term(loop: Loop, build: Build = contracts.net) -> None:
    """With λ = 0 loss and gradients are those of the loop without us, to the last bit."""
    batch, results = contracts.regression_batch(), []
    for plugged in (True, False):
        model = build()
        loss = loop(model, batch, regularizer(model, lam=0.0) if plugged else None)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def statistics_are_the_loops_own(loop: Loop, build: Build = normalized) -> None:
    """What the relation term asks moves no running statistics."""
    batch, results = contracts.regression_batch(), []
    for plugged in (True, False):
        model = build()
        loop(model, batch, regularizer(model) if plugged else None)
        results.append([b.clone() for b in model.buffers()])
    assert results[0]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def memory_is_flat(loop: Loop, build: Build = contracts.net) -> None:
    """Hundreds of meta-steps keep nothing."""
    grown = growth(loop, build)
    print(f"memory grew by {grown / 2**20:.2f} MiB")
    assert grown < ALLOWED, f"{grown / 2**20:.1f} MiB in {MEMORY_STEPS - WARM} steps"


def growth(loop: Loop, build: Build = contracts.net, keep: bool = False) -> int:
    """Bytes that the resident memory grew by after `WARM` steps; more if graphs are kept on purpose."""
    model, batch = build(), contracts.regression_batch()
    reg, before, kept = regularizer(model), 0, []
    optimizer = torch.optim.Adam([*model.parameters(), *reg.parameters()])
    for step in range(MEMORY_STEPS):
        if step == WARM:
            before = resident()
        optimizer.zero_grad()
        loss = loop(model, batch, reg)
        loss.backward(retain_graph=keep)
        optimizer.step()
        if keep:
            kept.append(loss)
    return resident() - before


def documented_loops_agree(
    module: ModuleType,
    names: Callable[[nn.Module, tr.TRLearner], dict],
    build: Build = contracts.net,
) -> None:
    """The loops before and after that a docstring shows take the same step at λ = 0, and λ matters.

    Args:
        module: Whose docstring.
        names: What the loops find, given the network and the regularizer.
        build: Makes the network.
    """
    assert module.__doc__ is not None
    before, after = re.findall(r"::\n\n((?:    .*\n|\n)+)", module.__doc__ + "\n")
    moved = []
    for code, lam in ((before, 0.0), (after, 0.0), (after, 0.7)):
        torch.manual_seed(0)
        net = build()
        reg = regularizer(net, lam=lam)
        exec(compile(textwrap.dedent(code), module.__name__, "exec"), names(net, reg))
        moved.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        assert (reg.relation.weight.grad is not None) == (lam > 0)
    start = torch.cat([p.detach().flatten() for p in build().parameters()])
    assert (moved[0] - start).abs().max() > 1e-6
    close(moved[1], moved[0], 1e-12)
    assert (moved[2] - moved[0]).abs().max() > 1e-6


def example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The example trains for some steps and tells of it."""
    example = importlib.import_module(f"trlearner.integrations.examples.{name}")
    with torch.random.fork_rng(devices=[]):
        example.main(3)
    assert "step   0: loss" in capsys.readouterr().out


def rows(batch: tr.TaskBatch | None = None) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """``(x, y, xq, yq)`` of every task."""
    return [(*s, *q) for s, q in contracts.tasks_of(batch or contracts.regression_batch())]


def names(net: nn.Module, reg: tr.TRLearner, **more: Any) -> dict[str, Any]:
    """What most documented loops use."""
    parameters = [*net.parameters(), *reg.parameters()]
    common = {"net": net, "reg": reg, "torch": torch, "loss_fn": mse_loss, "batch": rows()}
    return {**common, "optimizer": torch.optim.SGD(parameters, lr=0.1), **more}
