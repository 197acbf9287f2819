"""Other libraries' own MAML scripts, on Omniglot, with TRLearner in their loops.

Theirs are read from a clone, and not a line of them is here: only what goes in between. Their networks, inner
loops and optimizers stay; the data comes from ``$TRLEARNER_DATA``, and the device is the CPU::

    git clone https://github.com/facebookresearch/higher
    python -m trlearner.integrations.examples.peers higher --sources higher

It shows our lines and counts them, then trains without them, with λ = 0 and with λ = 0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from trlearner.experiments.data.episodes import Episodes
from trlearner.experiments.data.omniglot import by_character
from trlearner.experiments.data.problem import Request
from trlearner.integrations.examples.scripts import SCRIPTS, sources

# ---- what takes the place of their data ------------------------------------------------------------


class Omniglot:
    """What the scripts of higher and torchopt call OmniglotNShot: ``next(mode)`` is a meta-batch.

    Of `x_train` and `x_test` they look at the length only, for the number of steps in an epoch.
    """

    def __init__(
        self,
        root: str,
        batchsz: int,
        n_way: int,
        k_shot: int,
        k_query: int,
        imgsz: int,
        *,
        steps: int,
        tests: int,
        **_: Any,
    ) -> None:
        self.batchsz = batchsz
        self.x_train, self.x_test = torch.empty(steps * batchsz, 0), torch.empty(tests * batchsz, 0)
        self.episodes = episodes(k_shot, k_query, n_way)
        self.draws = {mode: torch.Generator().manual_seed(0) for mode in ("train", "test")}

    def next(self, mode: str = "train") -> tuple[Tensor, ...]:
        batch = self.episodes.sample(mode, self.batchsz, self.draws[mode])
        return *(batch.support.x, batch.support.y), *(batch.query.x, batch.query.y)


def tasksets(*_: Any, train_ways: int, train_samples: int, **more: Any) -> SimpleNamespace:
    """What learn2learn's `get_tasksets` returns: support and query samples of a task take turns."""
    drawn = episodes(train_samples // 2, train_samples // 2, train_ways)

    def task(split: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = drawn.sample(split, 1, generator)  # type: ignore[arg-type]
        (x, y, _), (xq, yq, _) = batch.support, batch.query
        return torch.stack([x[0], xq[0]], 1).flatten(0, 1), torch.stack([y[0], yq[0]], 1).flatten()

    return SimpleNamespace(
        **{
            split: SimpleNamespace(sample=partial(task, split, torch.Generator().manual_seed(0)))
            for split in ("train", "validation", "test")
        }
    )


def episodes(shots: int, queries: int, ways: int) -> Episodes:
    request = Request(shots, queries, data_dir=Path(os.environ.get("TRLEARNER_DATA", "data")))
    return Episodes(by_character(request), shots, queries, ways)


# ---- running them ----------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of a script.

    Attributes:
        losses: Of the tasks alone, by meta-step.
        accuracies: On the training tasks' queries, by meta-step.
        test: The accuracy on test tasks, after training.
        model: What it trained.
        seconds: All of it.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    test: float = float("nan")
    model: nn.Module | None = None
    seconds: float = 0.0


class Finished(Exception):
    """An epoch is over: these scripts have ten or a hundred of them."""


def run(name: str, root: Path, lam: float | None, steps: int, tests: int = 10) -> Run:
    """Runs a library's script.

    Args:
        name: Of the library.
        root: Of its clone.
        lam: λ; without our lines if there is none.
        steps: Meta-steps.
        tests: Meta-batches of test tasks.
    """
    script, found, began = SCRIPTS[name], Run(), time.perf_counter()
    code = compile(script.source(root, lam is not None), script.path, "exec")
    space: dict[str, Any] = {"__name__": script.path, "LAM": lam, "print": partial(heard, found)}
    with standing_in(name, root, found, steps, tests):
        exec(code, space)
    if "plot" in space:
        space["plot"] = partial(logged, found)
        space["test"] = partial(watched, found, space["test"])
    argv = [script.path, *script.arguments]
    with mock.patch.object(sys, "argv", argv), contextlib.suppress(Finished):
        space["main"](**script.options(steps))
    found.seconds = time.perf_counter() - began
    return found


def heard(found: Run, *words: Any) -> None:
    """Takes learn2learn's script at its word: ``Meta Train Error 1.6``."""
    if len(words) == 2:
        kind, value = words[0], float(words[1]) if words[0] != "Iteration" else 0.0
        if kind == "Meta Train Error":
            found.losses.append(value)
        elif kind == "Meta Train Accuracy":
            found.accuracies.append(100 * value)
        elif kind == "Meta Test Accuracy":
            found.test = 100 * value


def logged(found: Run, log: list[dict[str, Any]]) -> None:
    """In place of the plot that the other scripts draw after every epoch."""
    train = [line for line in log if line["mode"] == "train"]
    found.losses = [float(line["loss"]) for line in train]
    found.accuracies = [float(line["acc"]) for line in train]
    found.test = float(log[-1]["acc"])
    raise Finished


def watched(
    found: Run, test: Callable[..., None], db: Any, net: nn.Module, *more: Any, **options: Any
) -> None:
    found.model = net
    test(db, net, *more, **options)


@contextlib.contextmanager
def standing_in(name: str, root: Path, found: Run, steps: int, tests: int) -> Iterator[None]:
    """While it is open, the script's imports find our data, and no plots."""
    loader = SimpleNamespace(OmniglotNShot=partial(Omniglot, steps=steps, tests=tests))
    ours: dict[str, Any] = {
        f: mock.MagicMock() for f in ("pandas", "matplotlib", "matplotlib.pyplot")
    }
    for folder in ("support", "helpers"):
        ours |= {folder: ModuleType(folder), f"{folder}.omniglot_loaders": loader}
    if name != "learn2learn":
        importlib.import_module(name)  # the library itself, before anything stands in
    else:
        ours |= learn2learn(root, found)
    before = {module: sys.modules.get(module) for module in ours}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for module, old in before.items():
            if old is None:
                del sys.modules[module]
            else:
                sys.modules[module] = old


def learn2learn(root: Path, found: Run) -> dict[str, Any]:
    """Of its sources what the script uses: the package no longer builds."""
    theirs, before = root / "learn2learn", {n: m for n, m in sys.modules.items() if is_theirs(n)}
    for name in (
        "learn2learn",
        *(f"learn2learn.{n}" for n in ("algorithms", "vision", "vision.models")),
    ):
        parent = sys.modules[name] = ModuleType(name)  # empty: their own import everything
        parent.__path__ = [str(theirs.joinpath(*name.split(".")[1:]))]
    try:
        maml, cnn4, layers = (
            importlib.import_module(f"learn2learn.{n}")
            for n in ("algorithms.maml", "vision.models.cnn4", "nn")
        )
    finally:
        for name in [n for n in sys.modules if is_theirs(n)]:
            del sys.modules[name]
        sys.modules.update(before)

    def network(*sizes: int) -> nn.Module:
        found.model = cnn4.OmniglotFC(*sizes)
        return found.model

    vision = SimpleNamespace(
        models=SimpleNamespace(OmniglotFC=network),
        benchmarks=SimpleNamespace(get_tasksets=tasksets),
    )
    algorithms = SimpleNamespace(MAML=maml.MAML)
    return {"learn2learn": SimpleNamespace(nn=layers, algorithms=algorithms, vision=vision)}


def is_theirs(module: str) -> bool:
    return module.partition(".")[0] == "learn2learn"


# ---- the command -----------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Other libraries' MAML scripts with TRLearner.")
    parser.add_argument("name", choices=SCRIPTS)
    parser.add_argument("--sources", type=Path, help="its clone; or set TRLEARNER_HIGHER and so on")
    parser.add_argument("--lam", type=float, nargs="*", default=[0.0, 0.1])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(argv)
    root = options.sources or sources(options.name)
    if root is None:
        parser.error(
            f"--sources: where {SCRIPTS[options.name].path} of a clone of {options.name} is"
        )
    loop, all_of_it = SCRIPTS[options.name].lines(root)
    print(f"{options.name}, {SCRIPTS[options.name].path}")
    print(f"in the loop, {loop.added} added, {loop.changed} changed:", *loop.shown, sep="\n")
    rest = [line for line in all_of_it.shown if line not in loop.shown]
    print(f"set up, {len(rest)} added:", *rest, sep="\n")
    for lam in (None, *options.lam):
        tell(
            "without TRLearner" if lam is None else f"λ = {lam}",
            run(options.name, root, lam, options.steps),
        )


def tell(title: str, found: Run) -> None:
    """The training accuracy over five spans of steps, and what the script says of test tasks."""
    spans = [chunk.tolist() for chunk in torch.tensor(found.accuracies).chunk(5)]
    means = " ".join(f"{sum(span) / len(span):5.1f}" for span in spans)
    print(
        f"{title:<18} train {means} %   test {found.test:.1f} %   {found.seconds:.0f} s", flush=True
    )


if __name__ == "__main__":
    main()
