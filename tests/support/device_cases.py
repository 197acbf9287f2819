"""What `test_devices.py` compares: each case on the CPU and on the pretend device, as JSON on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import contracts
import torch
from pretend_device import DEVICE, waits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import trlearner as tr
from trlearner.regularizer import graph_step
from trlearner.regularizer.meta_step import StepState
from trlearner.regularizer.output import Draws

CPU = torch.device("cpu")
Found = list[Tensor]


def encoder(extractor: nn.Module | None = None, **widths: int) -> tr.LabelledEncoder:
    widths = widths or {"features": contracts.INPUTS, "targets": contracts.OUTPUTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tr.LabelledEncoder(extractor, dim=4, hidden=5, **widths)


def regularizer(task_encoder: tr.Encoder, **options: object) -> tr.TRLearner:
    draws = torch.Generator().manual_seed(0)
    return tr.TRLearner(task_encoder, generator=draws, **options).double()


def norm_net(trains: bool) -> nn.Module:
    net = contracts.net()
    net.body = nn.Sequential(net.body, nn.BatchNorm1d(contracts.HIDDEN).double())
    net.body[1].num_batches_tracked += 1
    return net.train(trains)


def step(
    device: torch.device,
    engine: str,
    name: str = "maml",
    net: Callable[[], nn.Module] = contracts.net,
    **options: object,
) -> Found:
    """The second of two meta-steps: the first one looks at things that are looked at once."""
    learner = contracts.learner(name, net(), engine).to(device)
    learner.train(learner.model.training)
    reg = regularizer(encoder(), **options).to(device)
    batch = contracts.regression_batch().to(device)
    for _ in range(2):
        waits.clear()
        out = reg(learner, batch)
        found = torch.autograd.grad(out.loss, [*learner.parameters(), *reg.parameters()])
    return [out.loss, out.relations, out.weights, *found]


def classes(device: torch.device, engine: str) -> Found:
    learner = contracts.learner("maml", contracts.net(), engine).to(device)
    body = encoder(learner.model.body, features=contracts.HIDDEN)
    reg = regularizer(body, align="sinkhorn", loss_fn=cross_entropy, lam=0.5).to(device)
    batch = contracts.class_batch().to(device)
    waits.clear()
    out = reg(learner, batch)
    return [out.loss, out.relations, *torch.autograd.grad(out.loss, [*learner.parameters()])]


def collect(
    device: torch.device, together: bool = False, unequal: bool = False, **options: object
) -> Found:
    """A loop of the user's own, with `reg.collect()`."""
    net, reg = contracts.net().to(device), regularizer(encoder(), **options).to(device)
    names, weights = zip(*net.named_parameters(), strict=True)
    batch = contracts.regression_batch().to(device)
    waits.clear()
    tasks, loss = reg.collect(together=together), 0.0
    for i in range(len(batch)):
        (xs, ys), (xq, yq) = batch.support.real(i), batch.query.real(i)
        if unequal and i == 0:
            xs, ys = xs[1:], ys[1:]
        slopes = torch.autograd.grad(mse_loss(net(xs), ys), weights, create_graph=True)
        fast = {n: w - 0.1 * g for n, w, g in zip(names, weights, slopes, strict=True)}
        tasks.add(
            lambda x, fast=fast: functional_call(net, fast, (x,)), support=(xs, ys), query=(xq, yq)
        )
        loss = loss + mse_loss(functional_call(net, fast, (xq,)), yq) / len(batch)
    total = loss + tasks.penalty()
    return [total, *torch.autograd.grad(total, [*weights, *reg.parameters()])]


def graph_inputs(device: torch.device) -> Found:
    """λ and the temperature as inputs of a compiled step."""
    batch = contracts.regression_batch().to(device)
    reg = tr.TRLearner(encoder()).to(device)
    waits.clear()
    found = graph_step._inputs(
        reg.parts._replace(lam=0.3), StepState({}, {}), batch, Draws(True, None)
    )
    return [found["lam"], found["temperature"]]


def masks(device: torch.device) -> Found:
    """A batch of tasks of unequal size."""
    x = torch.ones(3, 1, device=device)
    waits.clear()
    batch = tr.TaskBatch.from_tasks([((x, x), (x, x)), ((x[1:], x[1:]), (x, x))])
    return [batch.support.mask]


CASES: dict[str, Callable[[torch.device], Found]] = {
    **{f"maml on {engine}": partial(step, engine=engine) for engine in contracts.EAGER},
    **{f"{n} on batched": partial(step, engine="batched", name=n) for n in contracts.LEARNERS[1:]},
    **{f"classes on {engine}": partial(classes, engine=engine) for engine in ("loop", "batched")},
    "a part of the queries": partial(step, engine="batched", queries=0.5),
    "top_k on batched": partial(step, engine="batched", top_k=2),
    "batch norm on loop": partial(step, engine="loop", net=partial(norm_net, True)),
    "frozen batch norm": partial(step, engine="batched", net=partial(norm_net, False)),
    "collect": collect,
    "collect, together": partial(collect, together=True),
    "inputs of a graph": graph_inputs,
    "masks": masks,
    "collect, unequal": partial(collect, unequal=True),
    # These wait: Python has to know which models are asked.
    "collect, top_k": partial(collect, top_k=2),
    "top_k on loop": partial(step, engine="loop", top_k=2, net=partial(norm_net, True)),
}


def compared(case: Callable[[torch.device], Found]) -> dict[str, object]:
    """How far the two devices are apart, or why the pretend one cannot; and what waited there."""
    expected = case(CPU)
    try:
        found = case(DEVICE)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    seen = dict(waits)
    pairs = zip((t.detach().cpu() for t in found), expected, strict=True)
    off = max(float((a.double() - b.detach().double()).abs().max()) for a, b in pairs)
    return {"off": off, "away": all(t.device == DEVICE for t in found), "waits": seen}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: compared(case) for name, case in CASES.items()}))
