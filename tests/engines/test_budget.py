"""Chunks that fit a budget of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import contracts
import pytest
import torch
from torch import Tensor, nn

import trlearner as tr
from trlearner.engines.budget import free_memory, within_budget, within_container

BYTES = 4


def ask_of(width: int):  # type: ignore[no-untyped-def]
    """Answers that make two tensors of ``[part, width]`` each, and a view."""
    x = torch.zeros(100, width)

    def ask(part: slice) -> Tensor:
        return ((x[part] + 1).t() * 2).t()

    return ask, x


@pytest.mark.parametrize(("fits", "expected"), [(0.5, 1), (1, 1), (7.5, 7), (1000, 100)])
def test_as_many_as_fit_forward_and_backward(fits: float, expected: int) -> None:
    ask, x = ask_of(width=50)
    one = 2 * 50 * BYTES
    assert within_budget(ask, 100, int(3 * one * fits), like=x) == expected


def test_by_default_half_of_what_is_free() -> None:
    ask, x = ask_of(width=1000)
    free = free_memory(x.device)
    assert 2**26 < free < 2**46
    assert within_budget(ask, 10**9, None, like=x) == pytest.approx(
        free / 2 / (3 * 2 * 1000 * BYTES), rel=0.3
    )


def test_ranks_of_one_machine_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, x = ask_of(width=1000)
    monkeypatch.setattr("trlearner.engines.budget.free_memory", lambda device: 2**30)
    alone = within_budget(ask, 10**9, None, like=x)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert within_budget(ask, 10**9, None, like=x) == alone // 4


def test_a_container_has_a_limit_of_its_own(tmp_path: Path) -> None:
    assert within_container(tmp_path) == sys.maxsize
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1200\n")
    assert within_container(tmp_path) == 3800
    (tmp_path / "memory.max").write_text("max\n")
    assert within_container(tmp_path) == sys.maxsize


def test_measuring_leaves_no_trace_in_what_is_drawn() -> None:
    x = torch.zeros(10, 10)
    state = torch.get_rng_state()
    within_budget(lambda part: nn.functional.dropout(x[part]), 10, 1000, like=x)
    assert torch.equal(state, torch.get_rng_state())


def regularizer(**options: object) -> tr.TRLearner:
    torch.manual_seed(0)
    encoder = tr.LabelledEncoder(None, dim=4, features=2, targets=3)
    generator = torch.Generator().manual_seed(0)
    return tr.TRLearner(encoder, lam=0.7, generator=generator, **options).double()


@pytest.mark.parametrize("engine", ["batched", *contracts.later("higher", "loop", "channels_last")])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("budget", [1, 3000, None])
def test_the_step_stays_the_same(engine: str, top_k: int | None, budget: int | None) -> None:
    batch = contracts.regression_batch(tasks=6)
    learner = contracts.learner("maml", contracts.net(), engine)
    whole = regularizer(top_k=top_k)
    fitted = regularizer(top_k=top_k, chunk_size="auto", memory_budget=budget)
    a, b = whole(learner, batch), fitted(learner, batch)
    contracts.close(b.loss, a.loss, 1e-12)
    expected, found = (
        contracts.gradients(o.loss, learner, r) for o, r in ((a, whole), (b, fitted))
    )
    for name in expected:
        contracts.close(found[name], expected[name], 1e-12)


def test_a_graph_that_cannot_look_is_refused() -> None:
    learner = contracts.learner("maml", contracts.net(), "traced")
    reg = regularizer(chunk_size="auto")
    with pytest.raises(
        RuntimeError, match="chunk_size='auto' looks at every step's memory.*batched"
    ):
        reg(learner, contracts.regression_batch())


@pytest.mark.unchecked
def test_a_budget_needs_auto() -> None:
    with pytest.raises(
        ValueError, match="memory_budget goes with chunk_size='auto', got chunk_size=4"
    ):
        regularizer(chunk_size=4, memory_budget=10**9)
    with pytest.raises(ValueError, match="memory_budget must be a whole number of at least 1.*0.5"):
        regularizer(chunk_size="auto", memory_budget=0.5)


PEAK = """
import json, sys
import torch
from torch import nn
import trlearner as tr
from trlearner.experiments.bench.memory import peak

torch.set_num_threads(1)
lam, chunk, budget = json.loads(sys.argv[1])
x = torch.rand(256, 15, 1)
pair = (x[:, :5], 2 * x[:, :5]), (x[:, 5:], 2 * x[:, 5:])
net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
learner = tr.MAML(net, lr=0.01, steps=1, engine="batched")
encoder = tr.LabelledEncoder(None, dim=8, features=1, targets=1)
reg = tr.TRLearner(encoder, lam=lam, chunk_size=chunk, memory_budget=budget)
reg(learner, tr.TaskBatch(*pair)[:3]).loss.backward()
before = peak()
reg(learner, tr.TaskBatch(*pair)).loss.backward()
print(peak() - before)
"""


def peak_of(lam: float, chunk: str | None = None, budget: int | None = None) -> int:
    """Bytes of a step of 256 tasks in a process of its own."""
    command = [sys.executable, "-c", PEAK, json.dumps([lam, chunk, budget])]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_the_peak_stays_within_the_budget() -> None:
    without, whole = peak_of(0.0), peak_of(0.1)
    for budget in (2**26, 2**27):
        found = peak_of(0.1, "auto", budget)
        assert found - without <= budget < whole - without
