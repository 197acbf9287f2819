"""What each way to make the relation term cheap costs in accuracy, and what it gains in time.

    python -m trlearner.experiments.bench.accuracy --seeds 5 --json experiments/results/bench/accuracy.json

The demo's learner, MAML on sinusoids with T = 16 and engine `batched`, is trained once with every setting:
from the same start, on the same batches, with the same clipped Adam, one step each in turn, so that times
compare. The last column is of the end of training with the full term: there, in float64, each setting's
gradient of L_TR by the learner's parameters is held against the full term's. Seeds that ``--json`` has with
the same settings are not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from trlearner.experiments.bench import record
from trlearner.experiments.demo.comparison import Arm, Settings, error_on, make_arm, train_arms
from trlearner.experiments.demo.job import TEST_SEED
from trlearner.experiments.demo.regression import Sinusoids
from trlearner.experiments.reporting.interval import interval, paired

import trlearner as tr

ALONE, FULL = "learner alone", "all models, all queries"
SETTINGS: dict[str, dict[str, Any]] = {
    ALONE: {"lam": 0.0},
    FULL: {},
    "queries=0.3": {"queries": 0.3},
    "top_k=4": {"top_k": 4},
    "top_k=4, queries=0.3": {"top_k": 4, "queries": 0.3},
    "chunk_size=4": {"chunk_size": 4},
    "head": {"head": "4"},
}
"""Options of `TRLearner` by what the table calls them."""

BATCHES = 20
"""So many fresh batches a seed show how gradients agree."""


def arm_with(name: str, settings: Settings, seed: int) -> Arm:
    """The demo's arm with a setting."""
    arm = make_arm(name, settings, seed, **{"lam": settings.lam, **SETTINGS[name]})
    arm.clock = process_time
    return arm


def measure(settings: Settings, seed: int) -> dict[str, dict[str, Any]]:
    """By setting: the test error, milliseconds of a step, and the cosine in each of some batches."""
    arms = {name: arm_with(name, settings, seed) for name in SETTINGS}
    train_arms(list(arms.values()), settings, seed, lambda *_: None)
    generator = torch.Generator().manual_seed(TEST_SEED)
    curves = Sinusoids.draw(settings.test_tasks, generator)
    test = curves.batch(settings.shots, settings.test_queries, generator)
    cosines = agreement(arms[FULL], settings, seed)
    return {
        name: {
            "test_mse": error_on(arm.learner, test),
            "median_ms": arm.milliseconds(),
            "cosines": cosines.get(name),
        }
        for name, arm in arms.items()
    }


def agreement(trained: Arm, settings: Settings, seed: int) -> dict[str, list[float]]:
    """Cosines of each setting's gradient of the term with the full term's, where `trained` stands."""
    generator = torch.Generator().manual_seed(TEST_SEED + 1 + seed)
    batches = [
        Sinusoids.draw(settings.tasks, generator)
        .batch(settings.shots, settings.queries, generator)
        .to(torch.float64)
        for _ in range(BATCHES)
    ]
    found: dict[str, list[Tensor]] = {}
    for name in SETTINGS:
        arm = arm_with(name, settings, seed)
        arm.learner.load_state_dict(trained.learner.state_dict())
        arm.regularizer.load_state_dict(trained.regularizer.state_dict())
        if arm.regularizer.lam:
            found[name] = [gradient_of_term(arm, batch) for batch in batches]
    return {
        name: [float(cosine_similarity(a, b, dim=0)) for a, b in zip(g, found[FULL], strict=True)]
        for name, g in found.items()
    }


def gradient_of_term(arm: Arm, batch: tr.TaskBatch) -> Tensor:
    """The gradient of L_TR by all of the learner's parameters, in one vector: with the term less without."""
    learner, reg = arm.learner.double(), arm.regularizer.double()
    parts = []
    for lam in (1.0, 0.0):
        reg.lam = lam
        grads = torch.autograd.grad(reg(learner, batch).loss, list(learner.parameters()))
        parts.append(torch.cat([grad.flatten() for grad in grads]))
    return parts[0] - parts[1]


def table(seeds: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: a line for each setting; intervals are of 95 % and over seeds."""

    def values(name: str, what: str) -> list[float]:
        return [found[name][what] for found in seeds]

    lines = [
        "| setting | test MSE | less the full term's, by seed | time of a step, alone = 1 "
        "| cosine of its gradient with the full term's |",
        "|---|---|---|---|---|",
    ]
    for name in seeds[0]:
        error = values(name, "test_mse")
        difference = paired(values(FULL, "test_mse"), error)
        times = zip(values(name, "median_ms"), values(ALONE, "median_ms"), strict=True)
        time = statistics.median(ms / alone for ms, alone in times)
        cosines = [c for found in seeds for c in found[name]["cosines"] or ()]
        cells = [
            str(interval(error)),
            "" if name == FULL else str(difference),
            f"{time:.2f}",
            f"{statistics.median(cosines):.3f}" if cosines else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table; returns what was measured, by seed."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Settings(seeds=5, steps=1750)
    parser.add_argument("--seeds", type=int, default=usual.seeds, help="how many, from 0")
    parser.add_argument("--steps", type=int, default=usual.steps, help="meta-steps a seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.steps) < 1:
        parser.error("--seeds and --steps must be at least 1.")
    torch.set_num_threads(1)
    settings = replace(usual, steps=options.steps)
    described = {**asdict(settings), "seeds": None, "arms": SETTINGS}
    found = known(options.json, described)[: options.seeds]
    for seed in range(len(found), options.seeds):
        found.append(measure(settings, seed))
        if options.json:
            text = {"machine": record.machine(), "versions": record.versions()}
            text |= {"settings": described, "seeds": found}
            options.json.write_text(json.dumps(text, indent=2) + "\n")
    print(table(found))
    return found


def known(path: Path | None, described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The seeds that a file has of exactly these settings, from 0 on."""
    if path is None or not path.exists():
        return []
    text = json.loads(path.read_text())
    return list(text["seeds"]) if text["settings"] == described else []


if __name__ == "__main__":
    main()
