"""How low the relation term can go: what the others know of a task, by whoever says how to weigh them.

    python -m trlearner.experiments.evidence.understand --out experiments/results/evidence/understand

MAML is trained with the relation term on curves. Then, for T unseen tasks, each task's queries are
predicted by the mixture of the T - 1 others' adapted models, weighted

- ``uniform``: alike;
- ``learned``: by softmax of the trained M;
- ``explaining``: by how well a model explains the task's support (as `TaskMemory` does);
- ``oracle``: by how near the true curve is, which nobody knows.

``learned``, ``explaining`` and ``oracle`` each have the temperature, of six, that suits them best over all
tasks. Beside them stand the mean squared error of the task's ``own`` model, and of the true curve that is
``nearest``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trlearner.experiments.data.regression import HIGH, LOW, Curves
from trlearner.experiments.presets.preset import config_of
from trlearner.experiments.reporting.interval import interval
from trlearner.experiments.runs.build import make_learner, make_problem, make_regularizer

import trlearner as tr

SIZES = (4, 16, 64, 256)
TASKS = 256
KNOWN = 100
"""Samples of tasks that are known better than by a support."""

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
KINDS = ("own", "uniform", "learned", "explaining", "oracle", "nearest")


def study(problem_name: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """Rows of one problem and seed: for each number of tasks, errors by kind of weights."""
    config = config_of(
        problem_name, lam=0.1, normalize="softmax", seed=seed, steps=steps, outer_lr=3e-3
    )
    torch.manual_seed(seed)
    problem = make_problem(config, None, "cpu")
    assert isinstance(problem.source, Curves)
    learner = make_learner(config, problem, "compiled")
    reg = make_regularizer(config, problem, learner, "cpu")
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=config.outer_lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        reg(learner, problem.source.sample("train", config.tasks, generator)).loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
        nn.utils.clip_grad_norm_(reg.parameters(), config.clip)
        optimizer.step()
    learner.engine = "batched"
    return [
        {"problem": problem_name, "seed": seed, "tasks": size, "known": known, **found}
        for size in SIZES
        for known, found in errors(problem.source, learner, reg, size, seed).items()
    ]


@torch.no_grad()
def errors(
    source: Curves, learner: tr.Learner, reg: tr.TRLearner, size: int, seed: int
) -> dict[str, dict[str, float]]:
    """Of `TASKS` unseen tasks, `size` at a time; the others known by their support, or well."""
    found: dict[str, list[dict[str, Tensor]]] = {"support": [], "well": []}
    for first in range(TASKS // size):
        generator = torch.Generator().manual_seed(10_000 * seed + first)
        batch = source.sample("test", size, generator)
        again = torch.Generator().manual_seed(10_000 * seed + first)
        curves = source.draw(size, again, shifted=False)
        for known, rows in found.items():
            rows.append(_errors(source, learner, reg, batch, curves, known == "well", generator))
    return {
        known: {
            kind: float(torch.stack([row[kind] for row in rows]).mean(0).min()) for kind in KINDS
        }
        for known, rows in found.items()
    }


def _errors(
    source: Curves,
    learner: tr.Learner,
    reg: tr.TRLearner,
    batch: tr.TaskBatch,
    curves: Tensor,
    well: bool,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """By kind ``[temperatures]``; of those without one ``[1]``."""
    own = learner.adapt(batch.support, mse_loss)
    others, steps = batch.support, learner.steps
    if well:
        others, steps = tr.Samples(*source._points(curves, KNOWN, generator)), 10 * learner.steps
    models = learner.adapt(others, mse_loss, steps=steps)
    said = models.cross(batch.query.x)  # [models, tasks, queries, 1]
    explained = _squared(models.cross(batch.support.x), batch.support.y)
    grid = torch.linspace(LOW, HIGH, 200).expand(len(batch), -1)
    values = source.values(curves, grid)
    far = (values[:, None] - values).square().mean(-1)  # [tasks, tasks]
    scores = {"learned": reg.relate(learner, batch), "explaining": -explained.T, "oracle": -far}
    y = batch.query.y
    found = {
        "own": mse_loss(own(batch.query.x), y)[None],
        "uniform": _mixed(torch.zeros_like(far), 1.0, said, y)[None],
        "nearest": far.fill_diagonal_(torch.inf).min(1).values.mean()[None],
    }
    for kind, score in scores.items():
        found[kind] = torch.stack([_mixed(score, t, said, y) for t in TEMPERATURES])
    return found


def _squared(said: Tensor, y: Tensor) -> Tensor:
    """``[models, tasks]``."""
    return (said - y).square().flatten(2).mean(2)


def _mixed(scores: Tensor, temperature: float, said: Tensor, y: Tensor) -> Tensor:
    """The error of the mixture by softmax of ``scores [tasks, models]``, leaving each task's own out."""
    weights = tr.relation_weights(scores, "softmax", temperature=temperature)
    mixed = torch.einsum("ij,ji...->i...", weights, said)
    return mse_loss(mixed, y)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds."""
    lines = ["| problem | tasks at once | others known by |" + "".join(f" {k} |" for k in KINDS)]
    lines.append("|" + "---|" * (3 + len(KINDS)))
    keys = dict.fromkeys((r["problem"], r["tasks"], r["known"]) for r in rows)
    for key in keys:
        own = [r for r in rows if (r["problem"], r["tasks"], r["known"]) == key]
        cells = []
        for kind in KINDS:
            found = interval([r[kind] for r in own])
            half = "" if found.half_width is None else f" ± {found.half_width:.2f}"
            cells.append(f"{found.mean:.2f}{half}")
        name, size, known = key
        told = "their supports" if known == "support" else f"{KNOWN} samples"
        lines.append(f"| {name.split('/')[1]} | {size} | {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trlearner.experiments.evidence.understand")
    parser.add_argument("--problems", nargs="+", default=["sinusoid", "harmonic", "families"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("runs/understand"))
    told = parser.parse_args(arguments)
    torch.set_num_threads(1)
    told.out.mkdir(parents=True, exist_ok=True)
    path = told.out / "others.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {(r["problem"], r["seed"]) for r in rows}
    for seed in range(told.seeds):
        for name in told.problems:
            if (f"regression/{name}", seed) not in done:
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                rows += study(f"regression/{name}", seed, told.steps)
                path.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
