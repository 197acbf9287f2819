"""How long the way through the library is: the files that one call passes, and its moves between them.

python -m tests.support.way
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.nn.functional import mse_loss

import trlearner as tr

LIBRARY = Path(tr.__file__).parent


@dataclass(frozen=True)
class Way:
    """The files of the library that a call passed, in order; a file stands again after each move."""

    passed: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """Each file once, in the order of its first appearance."""
        return list(dict.fromkeys(self.passed))

    @property
    def moves(self) -> int:
        """How often a function of one file called a function of another."""
        return len(self.passed)


def way(call: Callable[[], object]) -> Way:
    """Follows one call through the library.

    A move is a call from a function of one file to a function of another file. The first call into the
    library is a move, too. A call that passes through torch in between counts like a direct call.
    """
    stack, passed = [""], []

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(LIBRARY):
            return
        if event == "call":
            file = str(path.relative_to(LIBRARY))
            if file != stack[-1]:
                passed.append(file)
            stack.append(file)
        elif event == "return":
            stack.pop()

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Way(tuple(passed))


def meta_step(steps: int) -> Callable[[], object]:
    """One warm ``reg(learner, batch)`` on the net 1-40-1 with this number of inner steps."""
    learner = tr.MAML(_net(), lr=0.01, steps=steps)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8))
    x = torch.rand(4, 15, 1)
    batch = tr.TaskBatch(support=(x[:, :5], x[:, :5]), query=(x[:, 5:], x[:, 5:]))
    return _warm(lambda: reg(learner, batch))


def collected() -> Callable[[], object]:
    """One warm meta-step of a loop of the user's own: `collect`, `penalty`, ``backward()``."""
    net, x = _net(), torch.rand(4, 15, 1)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8))

    def step() -> None:
        tasks = reg.collect()
        for task in x:
            support, query = (task[:5], task[:5]), (task[5:], task[5:])
            fast = dict(net.named_parameters())
            gradients = torch.autograd.grad(
                mse_loss(net(support[0]), support[1]), list(fast.values()), create_graph=True
            )
            fast = {n: p - 0.01 * g for (n, p), g in zip(fast.items(), gradients, strict=True)}
            tasks.add(
                lambda x, fast=fast: torch.func.functional_call(net, fast, (x,)),
                support=support,
                query=query,
            )
        tasks.penalty().backward()

    return _warm(step)


def main() -> None:
    """Prints one line for each way."""
    torch.manual_seed(0)
    ways = {f"reg(learner, batch), {n} inner steps": way(meta_step(n)) for n in (1, 5)}
    ways["collect, penalty, backward"] = way(collected())
    for name, passed in ways.items():
        print(f"{name}: {len(passed.files)} files, {passed.moves} moves")
        print("   ", ", ".join(passed.files))


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))


def _warm(call: Callable[[], object]) -> Callable[[], object]:
    for _ in range(3):  # caches are filled, and what is tried once has been tried
        call()
    return call


if __name__ == "__main__":
    main()
