"""The evidence, stage by stage. Each does only what is missing, and can be stopped at any moment.

python -m trlearner.experiments.evidence tune      # rates of the learners alone, on validation tasks
python -m trlearner.experiments.evidence term      # then the relation term, likewise
python -m trlearner.experiments.evidence train     # then whatever the table compares
python -m trlearner.experiments.evidence recall    # then memories of training tasks for these
python -m trlearner.experiments.evidence collect   # raw numbers into experiments/results/evidence
python -m trlearner.experiments.evidence table     # the table of these; needs nothing else
python -m trlearner.experiments.evidence remember  # memories by the Gaussian rule, on fresh test tasks
python -m trlearner.experiments.evidence remembered  # the table of these; needs nothing else
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from trlearner.experiments.evidence import collect, remembered, table
from trlearner.experiments.evidence.cells import ARMS, CELLS, Cell
from trlearner.experiments.evidence.recall import recall_all
from trlearner.experiments.evidence.remember import remember_all
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import sweep, train

RESULTS = Path("experiments/results/evidence")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trlearner.experiments.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = ("tune", "term", "train", "recall", "collect", "table", "remember", "remembered")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cells", nargs="+", default=[""], help="only those with this in the name")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these; by default all of a cell")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("TRLEARNER_DATA"))
    parser.add_argument(
        "--workers", type=int, help="runs at once; by default as many as fit the cores"
    )
    told = parser.parse_args(arguments)
    cells = [cell for cell in CELLS if any(part in cell.name for part in told.cells)]
    if not cells:
        names = ", ".join(repr(cell.name) for cell in CELLS)
        parser.error(f"--cells must be parts of the names {names}, got {told.cells}.")
    torch.set_num_threads(1)
    if told.stage == "table":
        print(table.write(told.results))
        return 0
    if told.stage == "remembered":
        print(remembered.write(told.results))
        return 0
    if told.stage == "remember":
        remember_all(cells, told.runs, told.results, told.data_dir)
        return 0
    if told.stage == "collect":
        collect.collect(cells, told.runs, told.results)
        return 0
    if told.stage == "recall":
        recall_all(cells, told.runs, told.data_dir)
        return 0
    code = 0
    for engine, configs in _runs(told, cells).items():
        run = partial(train.run, data_dir=told.data_dir, engine=engine)
        code = max(code, sweep.ablate(configs, run, told.runs, sweep.How(workers=told.workers)))
    return code


def _runs(told: argparse.Namespace, cells: Sequence[Cell]) -> dict[str, list[Config]]:
    """What a stage is made of, by engine; seed by seed, so that an early look sees every cell."""
    found: dict[str, list[Config]] = {}
    if told.stage in ("tune", "term"):
        for cell in cells:
            if cell.tuned and told.stage == "tune":
                found.setdefault(cell.engine, []).extend(cell.rate_candidates())
            elif cell.tuned:
                found.setdefault(cell.engine, []).extend(cell.term_candidates(told.runs))
        return found
    for seed in range(max(cell.seeds for cell in cells)):
        for cell in cells:
            if seed < cell.seeds and (told.seeds is None or seed in told.seeds):
                for arm in told.arms:
                    config = cell.arm(arm, told.runs, seed)
                    found.setdefault(cell.engine, []).append(config)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
