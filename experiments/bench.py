"""How fast is a meta-step? Our engines beside a plain loop on `higher`, in one process, in turns.

    make bench          # or: python -m trlearner.experiments.bench --tasks 4 16 64 --rounds 7

The network is the sinusoid regressor 1-40-40-1 with five second-order steps, 5 support and 10 query
samples. Every round times each contender once, so that a drifting machine hits all alike; the
table gives medians and, beside them, the speed as a multiple of the plain `higher` loop's.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import mse_loss

import trlearner as tr

STEPS, LR = 5, 0.01
Step = Callable[[], None]


def sinusoid_net() -> nn.Sequential:
    """1-40-40-1 with ReLU."""
    layers = [nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)]
    return nn.Sequential(*layers)


def sinusoids(tasks: int) -> tr.TaskBatch:
    """5 support and 10 query samples of sinusoids of random amplitude and phase."""
    amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), torch.pi * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, 15, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return tr.TaskBatch(support=(x[:, :5], y[:, :5]), query=(x[:, 5:], y[:, 5:]))


def plain_higher(batch: tr.TaskBatch) -> Step:
    """What a user of `higher` writes, without this library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher
    model = sinusoid_net()
    outer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    tasks = [(batch.support.real(i), batch.query.real(i)) for i in range(len(batch))]

    def step() -> None:
        outer.zero_grad()
        for (xs, ys), (xq, yq) in tasks:
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (f, diffopt):
                for _ in range(STEPS):
                    diffopt.step(mse_loss(f(xs), ys))
                (mse_loss(f(xq), yq) / len(tasks)).backward()
        outer.step()

    return step


def ours(engine: str, batch: tr.TaskBatch, lam: float, **options: float) -> Step:
    """The whole public call: forward, backward, optimizer."""
    learner = tr.MAML(sinusoid_net(), lr=LR, steps=STEPS, engine=engine)
    encoder = tr.LabelledEncoder(None, dim=32, features=1, targets=1)
    reg = tr.TRLearner(encoder=encoder, lam=lam, **options)  # type: ignore[arg-type]
    outer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=1e-3)

    def step() -> None:
        outer.zero_grad()
        reg(learner, batch).loss.backward()
        outer.step()

    return step


def contenders(batch: tr.TaskBatch) -> dict[str, Step]:
    """Every way to take a meta-step, by name."""
    found = {"plain higher loop": plain_higher(batch)}
    for engine in ("higher", "loop", "batched", "compiled"):
        found[f"{engine}"] = ours(engine, batch, lam=0.0)
        found[f"{engine} + TRLearner"] = ours(engine, batch, lam=0.1)
        found[f"{engine} + TRLearner, queries=0.3"] = ours(engine, batch, lam=0.1, queries=0.3)
    return found


def measure(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median milliseconds of each step, taken in turns after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn > 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main(arguments: list[str] | None = None) -> dict[int, dict[str, float]]:
    """Prints one table; returns milliseconds by number of tasks and contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {t: measure(contenders(sinusoids(t)), options.rounds) for t in options.tasks}
    print(f"torch {torch.__version__}, 1 thread, medians of {options.rounds} rounds, ms (x higher)")
    print(f"{'':34}" + "".join(f"{f'T = {t}':>18}" for t in options.tasks))
    for name in next(iter(found.values())):
        cells = [
            f"{found[t][name]:9.1f} ({found[t]['plain higher loop'] / found[t][name]:5.1f})"
            for t in options.tasks
        ]
        print(f"{name:34}" + "".join(f"{cell:>18}" for cell in cells))
    return found


if __name__ == "__main__":
    main()
