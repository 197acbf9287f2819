"""Our own engines, each without TRLearner, with it, and with it on a part of the queries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from trlearner.experiments.bench.contender import Build, Contender, of_torch
from trlearner.experiments.bench.workload import OUTER_RATE, Workload

import trlearner as tr

ENGINES = ("auto", "higher", "loop", "channels_last", "batched", "compiled")
PLAIN = ""
VARIANTS: Mapping[str, Mapping[str, float]] = {
    PLAIN: {"lam": 0.0},
    " + TRLearner": {"lam": 0.1},
    " + TRLearner, queries=0.3": {"lam": 0.1, "queries": 0.3},
}
"""What the regularizer is set to, by what it adds to an engine's name."""


def ours(workload: Workload, engine: str, variant: str) -> Contender:
    """The whole public call, as the README has it: forward, backward, optimizer."""
    net, options = workload.net(), VARIANTS[variant]
    learner, reg = pair(workload, net, engine, options)
    trained = [*learner.parameters(), *(reg.parameters() if options["lam"] else ())]
    outer = torch.optim.Adam(trained, lr=OUTER_RATE, fused=True)

    def step() -> None:
        outer.zero_grad()
        reg(learner, workload.batch).loss.backward()
        outer.step()

    return of_torch(step, net)


def pair(
    workload: Workload, net: nn.Sequential, engine: str, options: Mapping[str, Any]
) -> tuple[tr.Learner, tr.TRLearner]:
    """The learner of a network and its regularizer, where the tasks are and in their precision."""
    batch, learner = workload.batch, workload.learner(net, engine)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        reg = tr.TRLearner(
            encoder=workload.encoder(net),
            loss_fn=workload.loss,
            generator=torch.Generator().manual_seed(2),
            **workload.relation,
            **options,
        ).to(batch.query.x.device)
        if options["lam"]:  # gives the encoder's layers their widths, for the optimizer
            reg.encoder.prepare(learner, batch)
            reg.to(batch.query.x.dtype)
    learner.to(batch.query.x.device, batch.query.x.dtype)  # rates and transformations, too
    return learner, reg


REFERENCE = "loop"
"""The engine whose meta-gradient everyone of a variant must find."""

OURS: dict[str, tuple[Build, str]] = {
    f"{engine}{variant}": (partial(ours, engine=engine, variant=variant), variant)
    for engine in ENGINES
    for variant in VARIANTS
}
"""How each is built, and which variant it is, by name."""
