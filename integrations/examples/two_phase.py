"""The memory of two phases beside one graph: ``python -m trlearner.integrations.examples.two_phase``.

Conv-4 on 28 x 28 images, 8 tasks of 5 ways, 5 second-order steps. One graph holds every task's inner loop
until the one ``backward()``; two phases (`add_task`, `backward`) hold one at a time, and adapt twice.
Each is taken in a process of its own, whose peak Linux tells.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from trlearner.experiments.data.models.conv4 import Conv4

import trlearner as tr

TASKS, WAYS, SHOTS, QUERIES, STEPS = 8, 5, 10, 3, 5
Params = dict[str, Tensor]


def adapt(net: nn.Module, support: tuple[Tensor, Tensor]) -> Params:
    """The inner loop."""
    (x, y), fast = support, dict(net.named_parameters())
    for _ in range(STEPS):
        loss = cross_entropy(predict(net, fast, x), y)
        gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {n: p - 0.1 * g for (n, p), g in zip(fast.items(), gradient, strict=True)}
    return fast


def predict(net: nn.Module, fast: Params, x: Tensor) -> Tensor:
    logits: Tensor = functional_call(net, fast, (x,))
    return logits


def step(phases: int) -> tuple[nn.Module, Tensor]:
    """One meta-step's backward pass: the network with its gradient, and the loss."""
    torch.manual_seed(0)
    net = Conv4(WAYS, channels=1, size=28)
    reg = tr.TRLearner(
        encoder=tr.InputEncoder(net.features, dim=32),
        loss_fn=cross_entropy,
        align="sinkhorn",
        chunk_size=1,
    )
    tasks = reg.collect(ways=WAYS)
    for _ in range(TASKS):
        (x, xq), (y, yq) = (
            (torch.rand(n * WAYS, 1, 28, 28) for n in (SHOTS, QUERIES)),
            (torch.arange(WAYS).repeat(n) for n in (SHOTS, QUERIES)),
        )
        if phases == 2:
            tasks.add_task(
                partial(adapt, net), partial(predict, net), support=(x, y), query=(xq, yq)
            )
            continue
        fast = adapt(net, (x, y))
        model = partial(predict, net, fast)
        tasks.add(model, support=(x, y), query=(xq, yq), loss=cross_entropy(model(xq), yq))
    return net, tasks.backward()


def peak(phases: int) -> tuple[float, float]:
    """MiB at the worst moment of one step in a process of its own, and its seconds."""
    command = [sys.executable, "-m", __spec__.name, str(phases)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mebibytes, seconds = map(float, said.split())
    return mebibytes, seconds


def main(argv: list[str]) -> None:
    if argv:  # the process that is measured
        began = time.perf_counter()
        step(int(argv[0]))
        seconds = time.perf_counter() - began
        (most,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(most) / 1024, seconds)
        return
    (one, slow), (two, slower) = peak(1), peak(2)
    print(f"one graph:  {one:5.0f} MiB, {slow:.1f} s")
    print(f"two phases: {two:5.0f} MiB, {slower:.1f} s, {two / one:.2f} times the memory")


if __name__ == "__main__":
    main(sys.argv[1:])
