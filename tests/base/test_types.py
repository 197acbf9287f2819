"""Protocols, and modules that keep what a protocol names among their parts."""

from typing import Protocol, runtime_checkable

from torch import nn

import trlearner as tr
from trlearner.base.types import SeesParts
from trlearner.engines.head import HasModel
from trlearner.regularizer import collect


@runtime_checkable
class HasBody(Protocol, metaclass=SeesParts):
    """A protocol with a part."""

    body: nn.Module


def test_a_part_of_a_module_is_seen():
    module = nn.Module()
    assert not isinstance(module, HasBody)
    module.body = nn.Linear(1, 1)
    assert isinstance(module, HasBody)
    assert not isinstance(None, HasBody)


def test_our_modules_are_what_the_protocols_ask_for():
    encoder = tr.InputEncoder(nn.Linear(1, 2), dim=2)
    reg = tr.TRLearner(encoder, loss_fn=nn.MSELoss())
    assert isinstance(reg, collect.Regularizer)
    assert isinstance(tr.MAML(nn.Linear(1, 1), lr=0.1, steps=1), HasModel)
