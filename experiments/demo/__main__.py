"""MAML, MAML + TRLearner and MAML + memory on sinusoids: ``python -m trlearner.experiments.demo``.

The first two start alike, see the same batches and take the same clipped Adam steps (rate 1e-3, norm 1);
the final weights count. The memory is made of the first one's learner: 300 of its training tasks are learned
from 60 samples each, and the models predict the test tasks together. Every learner is trained in a process
of its own, on as many cores as there are: 75 seconds on two.

The learner's settings were tuned for MAML **alone**, on other seeds (100 to 102) and other test tasks
than the demo's. Test MSE after 1000 | 1750 | 2000 meta-steps of 16 tasks, mean over those seeds:

    inner lr   1 step              2 steps             3 steps             5 steps
    0.005      -                   1.90 | 1.34 | 1.25  -                   1.45 | 0.98 | 0.90
    0.01       2.05 | 1.53 | 1.43  1.76 | 1.24 | 1.10  1.53 | 1.07 | 0.97  1.28 | 0.91 | 0.84
    0.02       2.13 | 1.58 | 1.48  1.76 | 1.34 | 1.23  -                   diverges
    0.05       2.44 | 1.95 | 1.86  2.61 | 2.59 | 2.16  -                   diverges
    0.1        3.00 | 2.67 | 2.58  3.36 | 2.97 | 2.85  -                   -

More inner steps cost more: in the time of 1750 meta-steps with 2 inner ones there are 1400 with 3
(about 1.25) and 1000 with 5 (1.28): a tie, given three seeds, so two steps at 0.01, the furthest from
diverging. MAML is far from converged there: the demo says what the term does early in training, not
where training ends.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import mse_loss
from trlearner.experiments.data.progress import Progress, span
from trlearner.experiments.demo import plot, table
from trlearner.experiments.demo.comparison import Settings
from trlearner.experiments.demo.job import (
    ARMS,
    MEMORY,
    Job,
    Made,
    make_arm,
    run_name,
    test_tasks,
    work,
)
from trlearner.experiments.demo.log import Log, clear
from trlearner.experiments.demo.workers import each

import trlearner as tr

SHOWN_CURVES, SHOWN_RELATIONS = 4, 16
"""The first so many test tasks are drawn: not chosen by their looks."""

SHOWN_ANSWER = 1
"""The test task whose answer by the memory is drawn; the curve of task 0 is almost flat."""


Seed = Mapping[str, Made]
"""By arm."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 130, as shells do, if it was interrupted."""
    settings, out, workers = parse(arguments)
    out.mkdir(parents=True, exist_ok=True)
    start, threads = time.perf_counter(), torch.get_num_threads()
    # Tensors this small gain nothing from a second thread, and lose fivefold on a busy machine.
    torch.set_num_threads(1)
    try:
        interrupted = run(settings, out, workers)
    finally:
        torch.set_num_threads(threads)
    print(f"\nEverything is in {out}, after {span(time.perf_counter() - start)}.")
    print(f"Curves and relations:  tensorboard --logdir {out / 'tensorboard'}")
    return 130 if interrupted else 0


def run(settings: Settings, out: Path, workers: int) -> bool:
    """Trains all learners and reports on the seeds that were finished; whether it was interrupted."""
    clear(out / "tensorboard")
    jobs = [Job(seed, name, settings, out) for seed in range(settings.seeds) for name in ARMS]
    made: dict[int, dict[str, Made]] = {seed: {} for seed in range(settings.seeds)}
    interrupted = False
    try:
        with Progress(settings.seeds, settings.steps, len(ARMS)) as progress:
            for job, result in each(work, jobs, min(workers, len(jobs)), progress.advance):
                made[job.seed][job.name] = result
    except KeyboardInterrupt:
        interrupted = True
    finished = list(takewhile(lambda seed: len(seed) == len(ARMS), made.values()))
    if interrupted:
        print(f"\nInterrupted: {len(finished)} of {settings.seeds} seeds are finished.")
    if finished:
        conclude(settings, finished, interrupted, out)
        relations = draw(settings, len(finished) - 1, finished[-1], out)
        with Log(out / "tensorboard") as log:
            name = run_name(len(finished) - 1, ARMS[1])
            log.image(name, "relations/test", plot.pixels(relations), settings.steps)
    return interrupted


def conclude(settings: Settings, seeds: Sequence[Seed], interrupted: bool, out: Path) -> None:
    """The table, printed, and the same as JSON."""
    errors = {
        name: [made.errors[name] for seed in seeds for made in seed.values() if name in made.errors]
        for name in (*ARMS, MEMORY)
    }
    milliseconds = {
        name: statistics.median(seed[name].milliseconds for seed in seeds) for name in ARMS
    }
    print(f"\n{table.table(settings, errors, milliseconds)}")
    results = table.record(settings, errors, milliseconds, interrupted)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def draw(settings: Settings, seed: int, made: Seed, out: Path) -> Figure:
    """The pictures of a seed; returns the one of M."""
    arms, states = {}, {}
    for name in ARMS:
        arms[name] = make_arm(settings, seed, name)
        states[name] = torch.load(io.BytesIO(made[name].weights), weights_only=True)
        arms[name].learner.load_state_dict(states[name]["learner"])
        arms[name].regularizer.load_state_dict(states[name]["regularizer"])
    memory = tr.TaskMemory(arms[ARMS[0]].learner, mse_loss)
    memory.load_state_dict(states[ARMS[0]]["memory"])
    curves, test = test_tasks(settings)
    few, more = slice(SHOWN_CURVES), slice(SHOWN_RELATIONS)
    learners = {name: arm.learner for name, arm in arms.items()}
    functions = plot.functions({**learners, MEMORY: memory}, curves[few], test.support[few])
    relations = plot.relations(arms[ARMS[1]], curves[more], test[more])
    plot.save(functions, out / "functions.png")
    plot.save(relations, out / "relations.png")
    task = slice(SHOWN_ANSWER, SHOWN_ANSWER + 1)
    answer = tr.plot_memory(memory, test.support[task], test.query[task])
    plot.save(answer, out / "memory.png")
    return relations


def parse(arguments: Sequence[str] | None) -> tuple[Settings, Path, int]:
    """The command line."""
    usual, quick = Settings(), Settings(seeds=2, steps=20, test_tasks=50, remembered=20, samples=20)
    parser = argparse.ArgumentParser(
        prog="trlearner.experiments.demo",
        description="MAML alone, with TRLearner's term, and with a memory of its training tasks.",
    )
    parser.add_argument("--seeds", type=int, help=f"how many, from 0 (default: {usual.seeds})")
    parser.add_argument("--steps", type=int, help=f"meta-steps a seed (default: {usual.steps})")
    parser.add_argument("--lam", type=float, help=f"weight of the term (default: {usual.lam})")
    parser.add_argument("--tasks", type=int, help=f"tasks a batch (default: {usual.tasks})")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="default: every core"
    )
    parser.add_argument("--quick", action="store_true", help="only see that it runs, in seconds")
    options = vars(parser.parse_args(arguments))
    out, workers = options.pop("out"), options.pop("workers")
    base = quick if options.pop("quick") else usual
    settings = replace(base, **{name: v for name, v in options.items() if v is not None})
    if min(settings.seeds, settings.steps, workers) < 1:
        parser.error("--seeds, --steps and --workers must be at least 1.")
    if not 3 <= settings.tasks <= settings.pool:
        parser.error(f"--tasks must lie in 3..{settings.pool}: relations need three tasks.")
    if not 0 < settings.lam < math.inf:
        parser.error("--lam must be above 0: at 0 both arms are MAML.")
    return settings, out, workers


if __name__ == "__main__":
    raise SystemExit(main())
