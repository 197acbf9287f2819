"""Folders of runs with made-up numbers."""

import json

import numpy as np
from trlearner.experiments.presets.config import Config

TASKS = 50


def put(root, config, tasks=None, *, better="lower", metric="mse", seconds=0.01, **more):
    """A run that has ended with these numbers of test tasks; without any, one that has not."""
    folder = root / config.problem / config.hash()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.record()))
    if tasks is None:
        return folder
    tasks = [None if np.isnan(v) else float(v) for v in tasks]
    known = [v for v in tasks if v is not None]
    mean = sum(known) / len(known) if len(known) == len(tasks) else None
    found = {str(config.inner_steps): {metric: {"summaries": {"mean": mean}, "tasks": tasks}}}
    result = {
        "config": config.record(),
        "hash": config.hash(),
        "metric": metric,
        "better": better,
        "best_step": 100,
        "test": found,
        "shifted": None,
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "timing.json").write_text(json.dumps({"seconds_per_step": seconds}))
    return folder


def fail(folder, text="RuntimeError: out of luck"):
    (folder / "error.txt").write_text(f"Traceback (most recent call last):\n  ...\n{text}\n")


def draw(config, level, effect, of_seed=0.1, of_task=0.5, rest=0.2):
    """Numbers of test tasks: tasks are the same for all runs, and the effect differs by seed."""
    shared = np.random.default_rng(99).standard_normal(TASKS)
    own = np.random.default_rng([config.seed, int(1000 * config.lam), *config.learner.encode()])
    seed = np.random.default_rng(config.seed).standard_normal()
    part = of_seed * (seed + 0.3 * own.standard_normal())
    return level + effect + part + of_task * shared + rest * own.standard_normal(TASKS)


LEARNERS = {"maml": 1.2, "anil": 1.5, "metasgd": 1.0, "protonet": 1.3}
LAMS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def gallery(root, seeds=5):
    """What a real study looks like: two problems, gaps, failures, one that diverged."""
    for learner, level in LEARNERS.items():
        for lam in LAMS:
            for seed in range(seeds):
                a = Config("regression/sinusoid", learner, lam, seed)
                b = Config("images/omniglot", learner, lam, seed)
                effect = -0.3 * lam / (lam + 0.1) + 0.25 * lam
                cost = 0.004 * (1 + list(LEARNERS).index(learner)) * (1.6 if lam else 1.0)
                if (learner, lam) == ("anil", 0.3):
                    continue
                unlucky = (learner, lam, seed) == ("protonet", 0.1, 2)
                if unlucky or (learner, lam) == ("metasgd", 1.0):
                    fail(put(root, a))
                elif (learner, lam, seed) == ("protonet", 1.0, 0):
                    put(root, a, np.full(TASKS, np.nan), seconds=cost)
                else:
                    put(root, a, draw(a, level, effect), seconds=cost)
                if learner != "metasgd":
                    accuracy = draw(b, 0.96 - 0.02 * level, -effect / 20, 0.01, 0.02, 0.02)
                    accuracy = np.clip(accuracy, 0, 1)
                    put(root, b, accuracy, better="higher", metric="accuracy", seconds=20 * cost)


if __name__ == "__main__":
    import sys
    from pathlib import Path

    from trlearner.experiments.reporting import report

    gallery(Path(sys.argv[1]))
    print(report.write(Path(sys.argv[1]), Path(sys.argv[2])))
