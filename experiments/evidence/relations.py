"""What M learns, where the truth is known: a mixture of families of curves.

    python -m trlearner.experiments.evidence.relations --seeds 5 --out experiments/results/relations

For each seed, a learner is trained with TRLearner and its labelled encoder, and M of 200 unseen curves is
compared with the truth before and after: with the curves' families, and with how near the curves
themselves are to each other. Prints a table; with ``--out`` writes ``families.json`` and two pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from trlearner.experiments.data.regression import HIGH, LOW, Curves
from trlearner.experiments.presets.config import Config
from trlearner.experiments.reporting.interval import interval, paired
from trlearner.experiments.runs.build import make_learner, make_problem, make_regularizer

import trlearner as tr
from trlearner.diagnostics.monitor import measure

TASKS = 200
MEASURES = ("purity", "family correlation", "curve correlation")


def unseen(source: Curves) -> tuple[tr.TaskBatch, NDArray[Any]]:
    """Test tasks, and how near their curves are: minus the root of the mean squared difference."""
    batch = source.sample("test", TASKS, torch.Generator().manual_seed(1))
    curves = source.draw(TASKS, torch.Generator().manual_seed(1), shifted=False)
    x = torch.linspace(LOW, HIGH, 200).expand(TASKS, -1)
    values = source.values(curves, x).double()
    return batch, -torch.cdist(values, values).div(200**0.5).numpy()


def judge(m: NDArray[Any], families: Sequence[Any], near: NDArray[Any]) -> dict[str, float]:
    """How M agrees with the truth."""
    same = measure.same_family(families).astype(float)
    found = (
        measure.purity(m, families),
        measure.rank_correlation(m, same),
        measure.rank_correlation(m, near),
    )
    return dict(zip(MEASURES, found, strict=True))


def train(seed: int, steps: int) -> tuple[NDArray[Any], NDArray[Any], tr.TaskBatch, NDArray[Any]]:
    """M of the unseen tasks before and after training, those tasks, and the nearness of their curves."""
    config = Config(
        problem="regression/families",
        lam=0.5,
        normalize="softmax",
        seed=seed,
        steps=steps,
        tasks=32,
        shots=10,
    )
    torch.manual_seed(seed)
    problem = make_problem(config, None, "cpu")
    learner = make_learner(config, problem, "auto")
    reg = make_regularizer(config, problem, learner, "cpu")
    assert isinstance(problem.source, Curves)
    batch, near = unseen(problem.source)
    before = reg.relate(learner, batch).double().numpy()
    optimizer = torch.optim.Adam(
        [
            {"params": list(learner.parameters()), "lr": config.outer_lr},
            {"params": list(reg.parameters()), "lr": 3e-3},
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        out = reg(learner, problem.source.sample("train", config.tasks, generator))
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
        nn.utils.clip_grad_norm_(reg.parameters(), config.clip)
        optimizer.step()
    return before, reg.relate(learner, batch).double().numpy(), batch, near


def draw(m: NDArray[Any], families: Sequence[Any], title: str, file: Path) -> None:
    """M with the tasks of one family side by side."""
    order = np.argsort(np.array(families), kind="stable")
    named = [families[i] for i in order]
    block = torch.from_numpy(m[np.ix_(order, order)])
    tr.plot_relations(block, named, title=title).save(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        before, after, batch, near = train(seed, given.steps)
        families = list(batch.ids or ())
        rows.append(
            {
                "seed": seed,
                "untrained": judge(before, families, near),
                "trained": judge(after, families, near),
                "truth": judge(near, families, near),
            }
        )
        print(f"seed {seed}: {rows[-1]['untrained']} -> {rows[-1]['trained']}", flush=True)
        if given.out and seed == 0:
            given.out.mkdir(parents=True, exist_ok=True)
            draw(
                before,
                families,
                "relations M of unseen curves, untrained",
                given.out / "untrained.png",
            )
            draw(
                after, families, "relations M of unseen curves, trained", given.out / "trained.png"
            )
    print(table(rows))
    if given.out:
        record = {"steps": given.steps, "rows": rows}
        (given.out / "families.json").write_text(json.dumps(record, indent=1) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with their 95 % intervals; the change is paired by seed."""
    lines = [
        f"| of {TASKS} unseen curves | untrained | trained | change | nearest curves themselves |"
    ]
    lines.append("|---|---|---|---|---|")
    for name in MEASURES:
        old, new, best = (
            [row[arm][name] for row in rows] for arm in ("untrained", "trained", "truth")
        )
        cells = (interval(old), interval(new), paired(old, new), f"{np.mean(best):.3f}")
        lines.append(f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
