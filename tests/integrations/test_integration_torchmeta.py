"""A loop on torchmeta with the relation term; of torchmeta only what needs no torchvision."""

from collections import OrderedDict
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
from trlearner.integrations import torchmeta as integration
from trlearner.integrations.torchmeta import adapted

import trlearner as tr
from regularizer.test_collect import LR, STEPS


@pytest.fixture
def peer() -> Iterator[Any]:
    with peer_sources.torchmeta() as found:
        yield found


def meta(peer: Any, of: nn.Module) -> nn.Module:
    """The same network of torchmeta's modules."""
    modules = peer.modules

    class Net(modules.MetaModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = modules.MetaLinear(contracts.INPUTS, contracts.HIDDEN)
            if not isinstance(of.body, nn.Linear):
                layers = self.body, modules.MetaBatchNorm1d(contracts.HIDDEN)
                self.body = modules.MetaSequential(*layers)
            self.head = modules.MetaLinear(contracts.HIDDEN, contracts.OUTPUTS)

        def forward(self, x: Tensor, params: Any = None) -> Tensor:
            hidden = torch.tanh(self.body(x, params=self.get_subdict(params, "body")))
            return self.head(hidden, params=self.get_subdict(params, "head"))

    model = Net().double()
    model.load_state_dict(of.state_dict())
    return model


def loop_on(peer: Any):  # type: ignore[no-untyped-def]
    def loop(model: nn.Module, batch: tr.TaskBatch, reg: tr.TRLearner | None) -> Tensor:
        tasks, losses = reg and reg.collect(), []
        theirs = {"train": (batch.support.x, batch.support.y), "test": tuple(batch.query)[:2]}
        for x, y, xq, yq in zip(*theirs["train"], *theirs["test"], strict=True):
            params = None
            for _ in range(STEPS):
                loss = mse_loss(model(x, params=params), y)
                params = peer.update(model, loss, params=params, step_size=LR)
            if tasks is not None:
                tasks.add(adapted(model, params), support=(x, y), query=(xq, yq))
            losses.append(mse_loss(model(xq, params=params), yq))
        loss = torch.stack(losses).mean()
        return loss if tasks is None else loss + tasks.penalty()

    return loop


@pytest.mark.parametrize("build", [contracts.net, normalized])
def test_the_gradient_is_the_engines(peer, build) -> None:  # type: ignore[no-untyped-def]
    gradient_is_the_engines(loop_on(peer), lambda: meta(peer, build()), build)


def test_nothing_changes_without_the_term(peer) -> None:  # type: ignore[no-untyped-def]
    nothing_changes_without_the_term(loop_on(peer), lambda: meta(peer, contracts.net()))


def test_statistics_are_the_loops_own(peer) -> None:  # type: ignore[no-untyped-def]
    statistics_are_the_loops_own(loop_on(peer), lambda: meta(peer, normalized()))


def test_the_documented_loops_agree(peer) -> None:  # type: ignore[no-untyped-def]
    x, y, xq, yq = (torch.stack(parts) for parts in zip(*rows(), strict=True))
    batch = {"train": (x, y), "test": (xq, yq)}

    def found(net: nn.Module, reg: tr.TRLearner) -> dict:
        more = {"gradient_update_parameters": peer.update, "adapted": adapted}
        return names(net, reg, **more) | {"batch": batch}

    documented_loops_agree(integration, found, lambda: meta(peer, contracts.net()))


def test_the_example_runs(peer, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    example_runs("torchmeta", capsys)


@pytest.mark.slow
def test_memory_is_flat(peer) -> None:  # type: ignore[no-untyped-def]
    memory_is_flat(loop_on(peer), lambda: meta(peer, contracts.net()))


class Scaled(nn.Module):
    """A module that takes `params` as torchmeta's do, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, params: Any = None) -> Tensor:
        self.calls += 1
        weight = self.weight if params is None else params["weight"]
        return weight * x


def test_without_torchmeta_parameters_are_passed_on_and_buffers_left_alone() -> None:
    net = Scaled()
    models = [adapted(net, OrderedDict(weight=net.weight * k)) for k in (2, 3)]
    x = torch.rand(4, 1)
    close(models[0](x), 2 * x, 1e-6)
    close(models[1](x), 3 * x, 1e-6)
    assert net.calls == 0
