"""A loop on higher with the relation term."""

import contracts
import higher
import pytest
import torch
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
from trlearner.integrations import higher as integration
from trlearner.integrations.higher import adapted

import trlearner as tr
from regularizer.test_collect import LR, STEPS


def loop(model: nn.Module, batch: tr.TaskBatch, reg: tr.TRLearner | None) -> Tensor:
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    tasks, losses = reg and reg.collect(), []
    for x, y, xq, yq in rows(batch):
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(STEPS):
                diffopt.step(mse_loss(fnet(x), y))
            if tasks is not None:
                tasks.add(adapted(fnet), support=(x, y), query=(xq, yq))
            losses.append(mse_loss(fnet(xq), yq))
    loss = torch.stack(losses).mean()
    return loss if tasks is None else loss + tasks.penalty()


@pytest.mark.parametrize("build", [contracts.net, normalized])
def test_the_gradient_is_the_engines(build) -> None:  # type: ignore[no-untyped-def]
    gradient_is_the_engines(loop, build)


def test_nothing_changes_without_the_term() -> None:
    nothing_changes_without_the_term(loop)


def test_statistics_are_the_loops_own() -> None:
    statistics_are_the_loops_own(loop)


def test_the_documented_loops_agree() -> None:
    def found(net: nn.Module, reg: tr.TRLearner) -> dict:
        inner = torch.optim.SGD(net.parameters(), lr=0.01)
        return names(net, reg, inner=inner, higher=higher, adapted=adapted)

    documented_loops_agree(integration, found)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example_runs("higher", capsys)


@pytest.mark.slow
def test_memory_is_flat() -> None:
    memory_is_flat(loop)


def test_copies_of_the_weights_are_noticed() -> None:
    """They are what nothing else notices: predictions have a gradient, the model gets none."""
    model, (x, y, xq, _) = contracts.net(), rows()[0]
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    with higher.innerloop_ctx(model, inner) as (fnet, diffopt):
        diffopt.step(mse_loss(fnet(x), y))
        assert fnet(xq).requires_grad
        with pytest.raises(ValueError, match="Pass copy_initial_weights=False to innerloop_ctx"):
            adapted(fnet)
    with (
        higher.innerloop_ctx(
            model, inner, copy_initial_weights=False, track_higher_grads=False
        ) as (fnet, diffopt),
        pytest.raises(ValueError, match="track_higher_grads=False, which keeps no graph"),
    ):
        adapted(fnet)
    with torch.no_grad():
        assert adapted(fnet) is fnet


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="fnet must be the functional model of .*got Net"):
        adapted(contracts.net())
