"""What was found, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trlearner.experiments.evidence.sampler.compare import ARMS
from trlearner.experiments.reporting.interval import interval, paired


def planted_table(runs: Sequence[dict]) -> str:
    """Test losses beside uniform draws, and the weight of marked tasks for that of the others.

    Intervals are of the mean over seeds, 95 %; differences are paired by seed. Ratios are averaged as
    logarithms.
    """
    lines = [
        "| tasks | sampler | test loss | minus uniform | weight, marked : others |",
        "|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(run["set"] for run in runs):
        own = {arm: _column(runs, kind, arm) for arm in ARMS}
        for arm, rows in own.items():
            if not rows:
                continue
            base = [
                r["test_loss"] for r in own["uniform"] if r["seed"] in {one["seed"] for one in rows}
            ]
            losses = [r["test_loss"] for r in rows]
            less = "" if arm == "uniform" else str(paired(base, losses))
            lines.append(
                f"| {kind} | {arm} | {interval(losses)} | {less} | {_ratio([r['ratio'] for r in rows])} |"
            )
    return "\n".join(lines)


def cost_table(costs: Sequence[dict]) -> str:
    """Milliseconds a step, and what the sampler adds."""
    lines = [
        "| net | engine | tasks | judged by | step, ms | with the sampler, ms | added |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in costs:
        judge = "held-out tasks" if c["held_out"] else "the next batch"
        lines.append(
            f"| {c['net']} | {c['engine']} | {c['tasks']} | {judge} | {c['without']:.2f} | "
            f"{c['with_sampler']:.2f} | {100 * c['added']:.0f} % |"
        )
    return "\n".join(lines)


def _column(runs: Sequence[dict], kind: str, arm: str) -> list[dict]:
    own = [run for run in runs if (run["set"], run["arm"]) == (kind, arm)]
    return sorted(own, key=lambda run: run["seed"])


def _ratio(ratios: Sequence[float]) -> str:
    found = interval([math.log(ratio) for ratio in ratios])
    if found.half_width is None or found.half_width == 0:
        return f"{math.exp(found.mean):.2f}"
    low, high = (math.exp(found.mean + s * found.half_width) for s in (-1, 1))
    return f"{math.exp(found.mean):.2f} [{low:.2f}, {high:.2f}]"
