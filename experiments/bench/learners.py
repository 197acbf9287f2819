"""The learners that are timed; every peer has MAML only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

import trlearner as tr

Make = Callable[[nn.Sequential, float, int, str], tr.Learner]
"""From a network whose last layer is its head, the inner rate and steps, and the engine."""


def maml(net: nn.Sequential, rate: float, steps: int, engine: str) -> tr.Learner:
    """Of second order."""
    return tr.MAML(net, lr=rate, steps=steps, engine=engine)


def fomaml(net: nn.Sequential, rate: float, steps: int, engine: str) -> tr.Learner:
    """Of first order."""
    return tr.MAML(net, lr=rate, steps=steps, first_order=True, engine=engine)


def metasgd(net: nn.Sequential, rate: float, steps: int, engine: str) -> tr.Learner:
    """A rate for each parameter."""
    return tr.MetaSGD(net, lr=rate, steps=steps, engine=engine)


def tnet(net: nn.Sequential, rate: float, steps: int, engine: str) -> tr.Learner:
    """A transformation behind each layer."""
    return tr.TNet(net, lr=rate, steps=steps, engine=engine)


def anil(net: nn.Sequential, rate: float, steps: int, engine: str) -> tr.Learner:
    """The last layer adapts."""
    return tr.ANIL(net, head=str(len(net) - 1), lr=rate, steps=steps, engine=engine)


def protonet(net: nn.Sequential, rate: float, steps: int, engine: str) -> tr.Learner:
    """The network without its head."""
    return tr.ProtoNet(net[:-1], engine=engine)


OTHERS: Mapping[str, Make] = {
    "FOMAML": fomaml,
    "MetaSGD": metasgd,
    "T-Net": tnet,
    "ANIL": anil,
    "ProtoNet": protonet,
}
