"""Runs one of the two studies and prints its table.

python -m trlearner.experiments.evidence.sampler planted     # 15 minutes on one core
python -m trlearner.experiments.evidence.sampler cost        # 10 minutes on one core, most of it compiling
python -m trlearner.experiments.evidence.sampler planted --show experiments/results/sampler/planted.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from trlearner.experiments.evidence.sampler.compare import Settings, compare
from trlearner.experiments.evidence.sampler.cost import NETS, costs
from trlearner.experiments.evidence.sampler.planted import SETS
from trlearner.experiments.evidence.sampler.table import cost_table, planted_table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trlearner.experiments.evidence.sampler")
    parser.add_argument("study", choices=["planted", "cost"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each run; by default the set's own")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--blocks", type=int, default=25, help="of ten steps, for each cost")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--out", type=Path, help="where the raw numbers go, as JSON")
    parser.add_argument("--show", type=Path, help="print the table of raw numbers that are there")
    told = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if told.show is not None:
        found = json.loads(told.show.read_text("utf-8"))
    else:
        if told.study == "planted":
            rows = compare(range(told.seeds), Settings(steps=told.steps), told.sets)
        else:
            rows = costs(told.blocks, told.nets)
        found = []
        for row in rows:
            print(row, file=sys.stderr, flush=True)
            found.append(row)
            if told.out is not None:  # after every row, for they take their time
                told.out.parent.mkdir(parents=True, exist_ok=True)
                told.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(planted_table(found) if told.study == "planted" else cost_table(found))


if __name__ == "__main__":
    main()
