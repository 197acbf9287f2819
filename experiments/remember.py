"""What a memory of training tasks takes off MAML's error on curves.

    python -m trlearner.experiments.remember regression/sinusoid-classic

Trains MAML for 1,500 steps of 16 tasks, remembers 300 training tasks by 60 samples each, tunes the memory by
leave-one-out, and tests on 1,000 new tasks. Four minutes on one core of a busy 2-core machine.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from torch import Tensor
from trlearner.experiments.build import make_learner, make_problem
from trlearner.experiments.evaluate import TEST_SEED
from trlearner.experiments.evidence.recall import MEMORY_SEED
from trlearner.experiments.presets.preset import config_of
from trlearner.experiments.problem import Problem

import trlearner as tr

STEPS, BATCH, REMEMBERED, SAMPLES, TESTED = 1500, 16, 300, 60, 1000


def train(learner: tr.Learner, problem: Problem, seed: int) -> None:
    """Meta-trains with clipped gradients."""
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        batch = problem.source.sample("train", BATCH, generator)
        adapted = learner.adapt(batch.support, problem.loss_fn)
        loss = problem.loss_fn(adapted(batch.query), batch.query.y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()


def error(predictions: Tensor, test: tr.TaskBatch) -> str:
    """The mean squared error."""
    return f"{float((predictions - test.query.y).square().mean()):.4f}"


def main() -> None:
    """Trains, remembers, tests, and prints a line for each way to answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", nargs="?", default="regression/sinusoid-classic")
    parser.add_argument("--learner", default="maml", choices=["maml", "anil", "metasgd", "tnet"])
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    config = config_of(words.problem, learner=words.learner)
    problem = make_problem(config, None, "cpu")
    known = make_problem(replace(config, queries=SAMPLES - config.shots), None, "cpu")
    torch.manual_seed(words.seed)
    learner = make_learner(config, problem, "batched")
    train(learner, problem, words.seed)
    learner.eval()
    generator = torch.Generator().manual_seed(MEMORY_SEED)
    training = known.source.sample("train", REMEMBERED, generator)
    test = problem.source.sample("test", TESTED, torch.Generator().manual_seed(TEST_SEED))
    with torch.no_grad():
        own = learner.adapt(test.support, problem.loss_fn)(test.query)
    print(f"own                {error(own, test)}")
    for rule in ("softmax", "gaussian"):
        memory = tr.TaskMemory(learner, problem.loss_fn, rule=rule)
        memory.remember(training)
        print(f"{rule:8s} defaults  {error(memory.adapt(test.support)(test.query), test)}")
        memory.tune()
        start = time.perf_counter()
        answers = memory.adapt(test.support)(test.query)
        seconds = time.perf_counter() - start
        print(f"{rule:8s} tuned     {error(answers, test)}   {seconds:.1f} s for {TESTED} tasks")
    _, deviations = memory.adapt(test.support)(test.query, std=True)
    covered = ((answers - test.query.y).abs() < 1.96 * deviations).float().mean()
    print(f"labels within 1.96 standard deviations: {float(covered):.1%}")


if __name__ == "__main__":
    main()
