"""MAML, MAML + TRLearner and MAML + memory on sinusoids: ``python -m trlearner.experiments.demo``.

The first two start alike, see the same batches and take the same clipped Adam steps (rate 1e-3, norm 1);
the final weights count. The memory is made of the first one's learner: 300 of its training tasks are learned
from 60 samples each, and the models predict the test tasks together. Three minutes on one core.

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
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from trlearner.experiments.bar import span
from trlearner.experiments.demo import comparison, plot, table
from trlearner.experiments.demo.comparison import Arm, Settings, Watch
from trlearner.experiments.demo.regression import Sinusoids
from trlearner.experiments.log import Log
from trlearner.experiments.progress import Progress

import trlearner as tr

TEST_SEED = 1_000_000
"""The test tasks are the same for every seed and arm, and no training seed comes near."""

SHOWN_CURVES, SHOWN_RELATIONS = 4, 16
"""The first so many test tasks are drawn: not chosen by their looks."""

SHOWN_ANSWER = 1
"""The test task whose answer by the memory is drawn; the curve of task 0 is almost flat."""


MEMORY = "MAML + memory"


class Trial(NamedTuple):
    """What one seed made."""

    arms: tuple[Arm, Arm]
    memory: tr.TaskMemory


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 130, as shells do, if it was interrupted."""
    settings, out = parse(arguments)
    out.mkdir(parents=True, exist_ok=True)
    start, threads = time.perf_counter(), torch.get_num_threads()
    # Tensors this small gain nothing from a second thread, and lose fivefold on a busy machine.
    torch.set_num_threads(1)
    try:
        interrupted = run(settings, out)
    finally:
        torch.set_num_threads(threads)
    print(f"\nEverything is in {out}, after {span(time.perf_counter() - start)}.")
    print(f"Curves and relations:  tensorboard --logdir {out / 'tensorboard'}")
    return 130 if interrupted else 0


def run(settings: Settings, out: Path) -> bool:
    """Trains seed after seed and reports on those that were finished; whether it was interrupted."""
    generator = torch.Generator().manual_seed(TEST_SEED)
    curves = Sinusoids.draw(settings.test_tasks, generator)
    test = curves.batch(settings.shots, settings.test_queries, generator)
    trained: list[Trial] = []
    interrupted = False
    with Log(out / "tensorboard") as log:
        try:
            with Progress(settings.seeds, settings.steps) as progress:
                for seed in range(settings.seeds):
                    watch = watcher(settings, seed, test, log, progress)
                    monitor = tr.RelationMonitor(log.writer(f"seed{seed}-trlearner"))
                    arms = comparison.train(settings, seed, watch, monitor)
                    trained.append(Trial(arms, comparison.remembering(arms[0], settings, seed)))
        except KeyboardInterrupt:
            interrupted = True
            print(f"\nInterrupted: {len(trained)} of {settings.seeds} seeds are finished.")
        if trained:
            conclude(settings, trained, test, interrupted, out)
            relations = draw(trained[-1], curves, test, out)
            name = run_name(len(trained) - 1, trained[-1].arms[1])
            log.image(name, "relations/test", plot.pixels(relations), settings.steps)
    return interrupted


def watcher(
    settings: Settings, seed: int, test: tr.TaskBatch, log: Log, progress: Progress
) -> Watch:
    """Writes the curves of a seed and moves the bar on."""
    every = max(1, settings.steps // 20)

    def watch(step: int, arms: Sequence[Arm], outs: Sequence[tr.Output]) -> None:
        for arm, out in zip(arms, outs, strict=True):
            values = {"loss/task": float(out.task_loss)} if step % 10 == 0 else {}
            if step % every == 0 or step == settings.steps:
                values["test/mse"] = comparison.error_on(arm.learner, test)
            log.scalars(run_name(seed, arm), step, values)
        times = " + ".join(f"{1000 * arm.seconds[-1]:.1f}" for arm in arms)
        progress.advance(seed, step, f"{times} ms a step")

    return watch


def conclude(
    settings: Settings,
    trained: Sequence[Trial],
    test: tr.TaskBatch,
    interrupted: bool,
    out: Path,
) -> None:
    """The table, printed, and the same as JSON."""
    sides = list(zip(*(trial.arms for trial in trained), strict=True))
    errors: dict[str, list[float]] = {
        arms[0].name: [comparison.error_on(arm.learner, test) for arm in arms] for arms in sides
    }
    errors[MEMORY] = [comparison.error_on(trial.memory, test) for trial in trained]
    milliseconds = {
        arms[0].name: statistics.median(arm.milliseconds() for arm in arms) for arms in sides
    }
    print(f"\n{table.table(settings, errors, milliseconds)}")
    results = table.record(settings, errors, milliseconds, interrupted)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def draw(trial: Trial, curves: Sinusoids, test: tr.TaskBatch, out: Path) -> Figure:
    """The pictures of the last finished seed; returns the one of M."""
    few, more = slice(SHOWN_CURVES), slice(SHOWN_RELATIONS)
    learners = {arm.name: arm.learner for arm in trial.arms}
    functions = plot.functions({**learners, MEMORY: trial.memory}, curves[few], test.support[few])
    relations = plot.relations(trial.arms[1], curves[more], test[more])
    plot.save(functions, out / "functions.png")
    plot.save(relations, out / "relations.png")
    task = slice(SHOWN_ANSWER, SHOWN_ANSWER + 1)
    answer = tr.plot_memory(trial.memory, test.support[task], test.query[task])
    plot.save(answer, out / "memory.png")
    return relations


def run_name(seed: int, arm: Arm) -> str:
    """The TensorBoard run of an arm, e.g. ``seed0-maml``."""
    return f"seed{seed}-{'trlearner' if arm.regularizer.lam else 'maml'}"


def parse(arguments: Sequence[str] | None) -> tuple[Settings, Path]:
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
    parser.add_argument("--quick", action="store_true", help="only see that it runs, in seconds")
    options = vars(parser.parse_args(arguments))
    out, base = options.pop("out"), quick if options.pop("quick") else usual
    settings = replace(base, **{name: v for name, v in options.items() if v is not None})
    if min(settings.seeds, settings.steps) < 1:
        parser.error("--seeds and --steps must be at least 1.")
    if not 3 <= settings.tasks <= settings.pool:
        parser.error(f"--tasks must lie in 3..{settings.pool}: relations need three tasks.")
    if not 0 < settings.lam < math.inf:
        parser.error("--lam must be above 0: at 0 both arms are MAML.")
    return settings, out


if __name__ == "__main__":
    raise SystemExit(main())
