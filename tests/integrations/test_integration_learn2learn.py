"""A loop on learn2learn with the relation term; from its sources, at TRLEARNER_LEARN2LEARN."""

from collections.abc import Iterator
from typing import Any

import contracts
import peer_sources
import pytest
import torch
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
from trlearner.integrations import learn2learn as integration
from trlearner.integrations.learn2learn import adapted

import trlearner as tr
from regularizer.test_collect import LR, STEPS


@pytest.fixture
def maml() -> Iterator[Any]:
    with peer_sources.learn2learn() as found:
        yield found.MAML


def loop_on(maml: Any):  # type: ignore[no-untyped-def]
    def loop(model: nn.Module, batch: tr.TaskBatch, reg: tr.TRLearner | None) -> Tensor:
        wrapped = maml(model, lr=LR)
        tasks, losses = reg and reg.collect(), []
        for x, y, xq, yq in rows(batch):
            learner = wrapped.clone()
            for _ in range(STEPS):
                learner.adapt(mse_loss(learner(x), y))
            if tasks is not None:
                tasks.add(adapted(learner), support=(x, y), query=(xq, yq))
            losses.append(mse_loss(learner(xq), yq))
        loss = torch.stack(losses).mean()
        return loss if tasks is None else loss + tasks.penalty()

    return loop


@pytest.mark.parametrize("build", [contracts.net, normalized])
def test_the_gradient_is_the_engines(maml, build) -> None:  # type: ignore[no-untyped-def]
    gradient_is_the_engines(loop_on(maml), build)


def test_nothing_changes_without_the_term(maml) -> None:  # type: ignore[no-untyped-def]
    nothing_changes_without_the_term(loop_on(maml))


def test_statistics_are_the_loops_own(maml) -> None:  # type: ignore[no-untyped-def]
    statistics_are_the_loops_own(loop_on(maml))


def test_clones_share_buffers_and_ours_do_not(maml) -> None:  # type: ignore[no-untyped-def]
    """In evaluation mode a clone answers by statistics that another's training has moved; ours stay."""
    model, (x, y, xq, _) = normalized(), rows()[0]
    wrapped = maml(model, lr=LR)
    first, second = wrapped.clone(), wrapped.clone()
    assert first.module.body[1].running_mean is model.body[1].running_mean
    first.adapt(mse_loss(first(x), y))
    first.eval()
    ours, theirs = adapted(first), first(xq)
    close(ours(xq), theirs, 1e-12)
    second.train()
    second(10 * x)
    close(ours(xq), theirs, 1e-12)
    assert (first(xq) - theirs).abs().max() > 1e-3


def test_the_documented_loops_agree(maml) -> None:  # type: ignore[no-untyped-def]
    def found(net: nn.Module, reg: tr.TRLearner) -> dict:
        return names(net, reg, maml=maml(net, lr=0.01), adapted=adapted)

    documented_loops_agree(integration, found)


def test_the_example_runs(maml, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    example_runs("learn2learn", capsys)


@pytest.mark.slow
def test_memory_is_flat(maml) -> None:  # type: ignore[no-untyped-def]
    memory_is_flat(loop_on(maml))


def test_the_model_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="learner must be a clone that was adapted"):
        adapted(contracts.net())
