"""A loop on torchopt with the relation term."""

import contracts
import pytest
import torch
import torchopt
from contracts import close
from integration import (
    documented_loops_agree,
    example_runs,
    gradient_is_the_engines,
    memory_is_flat,
    names,
    normalized,
    nothing_changes_without_the_term,
    rows,
    statistics_are_the_loops_own,
)
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trlearner.integrations import torchopt as integration
from trlearner.integrations.torchopt import adapted

import trlearner as tr
from regularizer.test_collect import LR, STEPS


def loop(model: nn.Module, batch: tr.TaskBatch, reg: tr.TRLearner | None) -> Tensor:
    inner = torchopt.MetaSGD(model, lr=LR)
    start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
    inner_start = torchopt.extract_state_dict(inner, by="reference")
    tasks, losses = reg and reg.collect(), []
    for x, y, xq, yq in rows(batch):
        for _ in range(STEPS):
            inner.step(mse_loss(model(x), y))
        if tasks is not None:
            tasks.add(adapted(model), support=(x, y), query=(xq, yq))
        losses.append(mse_loss(model(xq), yq))
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(inner, inner_start)
    loss = torch.stack(losses).mean()
    return loss if tasks is None else loss + tasks.penalty()


@pytest.mark.parametrize("build", [contracts.net, normalized])
def test_the_gradient_is_the_engines(build) -> None:  # type: ignore[no-untyped-def]
    gradient_is_the_engines(loop, build)


def test_nothing_changes_without_the_term() -> None:
    nothing_changes_without_the_term(loop)


def test_statistics_are_the_loops_own() -> None:
    statistics_are_the_loops_own(loop)


def test_a_model_outlives_the_recovery() -> None:
    model, (x, y, xq, _) = contracts.net(), rows()[0]
    inner, before = torchopt.MetaAdam(model, lr=0.1), model(xq)
    start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
    inner.step(mse_loss(model(x), y))
    ours, theirs = adapted(model), model(xq)
    torchopt.recover_state_dict(model, start)
    assert torch.equal(model(xq), before)
    close(ours(xq), theirs, 1e-12)


def test_the_documented_loops_agree() -> None:
    def found(net: nn.Module, reg: tr.TRLearner) -> dict:
        inner = torchopt.MetaSGD(net, lr=0.01)
        return names(net, reg, inner=inner, torchopt=torchopt, adapted=adapted)

    documented_loops_agree(integration, found)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example_runs("torchopt", capsys)


@pytest.mark.slow
def test_memory_is_flat() -> None:
    memory_is_flat(loop)


def test_a_model_that_was_recovered_already_is_refused() -> None:
    with pytest.raises(
        ValueError, match="net is not adapted: .*before torchopt.recover_state_dict"
    ):
        adapted(contracts.net())
