"""Every public callable refuses every kind of wrong argument by its name, one argument at a time.

A row of `CASES` is a callable, good arguments, and of what kind each of them is. `WRONG` has the values that
are wrong for a kind. The error must be a `ValueError` or `TypeError` that names the argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from trlearner.relations.gaussian import (
    best_models,
    gaussian_posterior,
    posterior_mean,
    posterior_variance,
)
from trlearner.samplers.scores import SCORES

pytestmark = [pytest.mark.unchecked, pytest.mark.filterwarnings("ignore::UserWarning")]

NAN, INF = math.nan, math.inf
NOT_NUMBERS = {
    "none": None,
    "text": "three",
    "list": [1],
    "dict": {},
    "tensor": torch.zeros(2, 2),
    "object": object(),
    "true": True,
}
OTHERS = {"none": None, "number": 3, "text": "x", "list": [], "tensor": torch.zeros(2), "nan": NAN}
TENSORS = {
    "none": None,
    "number": 3,
    "text": "x",
    "list": [[1.0]],
    "0-dim": torch.zeros(()),
    "empty": torch.zeros(0),
}
WRONG: dict[str, dict[str, Any]] = {
    "count": {**NOT_NUMBERS, "zero": 0, "negative": -1, "fraction": 1.5, "nan": NAN, "inf": INF},
    "whole": {**NOT_NUMBERS, "negative": -1, "fraction": 1.5, "nan": NAN, "inf": INF},
    "seed": {**NOT_NUMBERS, "fraction": 1.5, "nan": NAN},
    "positive": {**NOT_NUMBERS, "zero": 0, "negative": -1.0, "nan": NAN, "inf": INF},
    "number": {**NOT_NUMBERS, "negative": -1.0, "nan": NAN, "inf": INF},
    "share": {**NOT_NUMBERS, "zero": 0.0, "negative": -0.1, "above": 1.5, "nan": NAN, "inf": INF},
    "part": {**NOT_NUMBERS, "negative": -0.1, "above": 1.5, "nan": NAN, "inf": INF},
    "rate": {**NOT_NUMBERS, "negative": -1.0, "nan": NAN, "inf": INF, "unknown": {"no": 0.1}},
    "flag": {"none": None, "text": "no", "number": 2, "list": [], "nan": NAN, "tensor": torch.ones(2)},
    "choice": {"none": None, "number": 3, "text": "warp", "list": [], "true": True, "empty": ""},
    "function": {n: v for n, v in OTHERS.items() if n != "object"},
    "module": {**OTHERS, "function": abs, "class": nn.Linear},
    "instance": {**OTHERS, "function": abs, "module": nn.Linear(1, 1)},
    "generator": {n: v for n, v in OTHERS.items() if n != "none"},
    "tensor": TENSORS,
    "query": {"number": 3, "text": "x", "list": [[1.0]], "flat": torch.zeros(3), "empty": torch.zeros(0)},
    "pair": {**OTHERS, "one": (torch.zeros(2, 2),), "lists": ([1], [2]), "three": (1, 2, 3)},
    "ids": {"number": 3, "short": ["a"], "unhashable": [[], [], []], "0-dim": torch.zeros(())},
    "tasks": {"none": None, "number": 3, "text": "abc", "empty": [], "flat": [1, 2], "pair": [(1, 2)]},
}  # fmt: skip
WRONG["rate"] = {n: v for n, v in WRONG["rate"].items() if n != "list"} | {
    "empty": [],
    "texts": ["a"],
}


def optional(kind: str) -> str:
    """Of this kind, or ``None``."""
    WRONG[kind + " or none"] = {n: v for n, v in WRONG[kind].items() if n != "none"}
    return kind + " or none"


@dataclass
class Case:
    """A public callable."""

    call: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    kinds: dict[str, str]
    names: dict[str, str] | None = None  # what an error calls an argument, where that is more


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def batch(ids: Any = None) -> tr.TaskBatch:
    x, y = torch.rand(3, 4, 2), torch.rand(3, 4, 1)
    return tr.TaskBatch((x, y), (x, y), ids=ids)


def learner() -> tr.MAML:
    return tr.MAML(net(), steps=1, engine="loop")


def encoder() -> tr.LabelledEncoder:
    return tr.LabelledEncoder(None, dim=2, features=2, targets=1)


def reg() -> tr.TRLearner:
    return tr.TRLearner(encoder())


def memory() -> tr.TaskMemory:
    made = tr.TaskMemory(learner())
    made.remember(
        batch(), steps=1, held_out=0.0
    )  # labels are noise: no model would be worth remembering
    return made


def curve() -> tuple[Tensor, Tensor]:
    x = torch.rand(1, 4, 1)
    return x, 2 * x


def curve_memory() -> tr.TaskMemory:
    made = tr.TaskMemory(noise=1.0)
    made.remember_models([lambda x: x, lambda x: -x])
    return made


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.rand(*shape, 2), torch.rand(*shape, 1)


class Writer:
    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None: ...


LEARNER = {
    "lr": "rate", "steps": "whole", "first_order": "flag", "engine": "choice", "recompute": "flag",
}  # fmt: skip
SAMPLER = {"task_ids": "sequence", "batch_size": "count", "batches": optional("count"),
           "generator": "generator"}  # fmt: skip
WRONG["sequence"] = {"number": 3, "twice": ["a", "a", "b"], "unhashable": [[], []], "nan": NAN}


def collected(**given: Any) -> None:
    tasks = reg().collect()
    tasks.add(lambda x: x, **{"support": pair(4), "query": pair(4), **given})


def added(**given: Any) -> None:
    defaults = {
        "predict": lambda p, x: x,
        "adapt": lambda s: s[0],
        "support": pair(4),
        "query": pair(4),
    }
    reg().collect().add_task(**{**defaults, **given})


SAID = {"predictions": torch.rand(3, 4, 5), "labels": torch.rand(3, 5)}

CASES: dict[str, Case] = {
    "MAML": Case(tr.MAML, lambda: {"model": net()}, {"model": "module", **LEARNER}),
    "MetaSGD": Case(
        tr.MetaSGD, lambda: {"model": net()},
        {"model": "module", **LEARNER, "per": "choice", "per_step": "flag"},
    ),
    "ANIL": Case(
        tr.ANIL, lambda: {"model": net(), "head": "2"},
        {"model": "module", "head": "choice", **LEARNER},
    ),
    "TNet": Case(tr.TNet, lambda: {"model": net()}, {"model": "module", **LEARNER}),
    "ProtoNet": Case(
        tr.ProtoNet, lambda: {"extractor": net()}, {"extractor": "module", "engine": "choice"},
        {"extractor": "extractor|model"},
    ),
    "BayesHead": Case(
        tr.BayesHead, lambda: {"extractor": net()},
        {"extractor": "module", "dim": "count", "outputs": "count", "ways": optional("count"),
         "engine": "choice"},
        {"extractor": "extractor|model"},
    ),
    "adapt": Case(
        lambda **k: learner().adapt(**k), lambda: {"support": pair(3, 4), "loss_fn": mse_loss},
        {"support": "pair", "loss_fn": "function", "steps": optional("whole")},
        {"support": "support|x must"},
    ),
    "adapted": Case(
        lambda **k: learner().adapt(pair(3, 4), mse_loss)(**k), lambda: {"x": pair(3, 4)[0]},
        {"x": "tensor", "mask": optional("tensor")},
    ),
    "cross": Case(
        lambda **k: learner().adapt(pair(3, 4), mse_loss).cross(**k), lambda: {"x": pair(3, 4)[0]},
        {"x": "tensor", "mask": optional("tensor")},
    ),
    "Samples": Case(
        tr.Samples, lambda: dict(zip("xy", pair(3, 4), strict=True)),
        {"x": "tensor", "y": "tensor", "mask": optional("tensor"), "ways": optional("count")},
    ),
    "TaskBatch": Case(
        tr.TaskBatch, lambda: {"support": pair(3, 4), "query": pair(3, 4)},
        {"support": "pair", "query": "pair", "ids": "ids", "ways": optional("count")},
    ),
    "from_tasks": Case(
        tr.TaskBatch.from_tasks, lambda: {"tasks": [(pair(4), pair(4))] * 3},
        {"tasks": "tasks", "ids": "ids", "ways": optional("count")}, {"tasks": "task"},
    ),
    "from_torchmeta": Case(
        tr.TaskBatch.from_torchmeta, lambda: {"batch": {"train": pair(3, 4), "test": pair(3, 4)}},
        {"batch": "instance", "ids": "ids", "ways": optional("count")},
    ),
    "InputEncoder": Case(
        tr.InputEncoder, lambda: {"extractor": net(), "dim": 1},
        {"extractor": optional("module"), "dim": "count", "metadata": "choice", "detach": "flag",
         "own": "flag", "select": "select"},
    ),
    "LabelledEncoder": Case(
        tr.LabelledEncoder, lambda: {"extractor": None, "dim": 2},
        {"extractor": optional("module"), "dim": "count", "features": optional("count"),
         "targets": optional("count"), "hidden": "count", "detach": "flag", "own": "flag",
         "select": "select"},
    ),
    "UpdateEncoder": Case(
        tr.UpdateEncoder, lambda: {"dim": 2}, {"dim": "count", "seed": "seed", "detach": "flag"}
    ),
    "FunctionEncoder": Case(
        tr.FunctionEncoder, lambda: {"probe": torch.rand(3, 2)},
        {"probe": "tensor", "outputs": "count", "detach": "flag"},
    ),
    "TRLearner": Case(
        lambda **k: tr.TRLearner(**k), lambda: {"encoder": encoder()},
        {"encoder": "instance", "heads": "count", "lam": "number", "loss_fn": "function",
         "normalize": "choice", "temperature": "positive", "mixture": "choice", "align": "choice",
         "top_k": optional("count"), "queries": "share", "head": "name", "chunk_size": optional("count"),
         "memory_budget": optional("count"), "preset": optional("choice"),
         "sampler": optional("instance"), "generator": "generator"},
    ),
    "reg": Case(
        lambda **k: reg()(**k), lambda: {"learner": learner(), "batch": batch()},
        {"learner": "instance", "batch": "instance"},
    ),
    "relate": Case(
        lambda **k: reg().relate(**k), lambda: {"learner": learner(), "batch": batch()},
        {"learner": "instance", "batch": "instance"},
    ),
    "collect": Case(
        lambda **k: reg().collect(**k), dict,
        {"reduction": "choice", "together": "flag", "ways": optional("count")},
    ),
    "add": Case(
        collected, dict, {"support": "pair", "query": "pair", "loss": optional("tensor")}
    ),
    "add_task": Case(
        added, dict,
        {"adapt": "function", "predict": "function", "support": "pair", "query": "pair",
         "model": optional("module")},
    ),
    "regularize": Case(lambda **k: reg().regularize(**k), lambda: {"adapt": abs}, {"adapt": "function"}),
    "regularized": Case(
        lambda **k: reg().regularize(lambda support: net())(**k), lambda: {"batch": batch()},
        {"batch": "instance"},
    ),
    "TaskRelation": Case(
        tr.TaskRelation, lambda: {"dim": 2},
        {"dim": "count", "heads": "count", "noise": "number", "generator": "generator"},
    ),
    "relation": Case(
        lambda **k: tr.TaskRelation(2)(**k), lambda: {"embeddings": torch.rand(3, 2)},
        {"embeddings": "tensor"},
    ),
    "relation_matrix": Case(
        tr.relation_matrix, lambda: {"embeddings": torch.rand(3, 2), "weight": torch.rand(2, 2)},
        {"embeddings": "tensor", "weight": "tensor"},
    ),
    "relation_weights": Case(
        tr.relation_weights, lambda: {"relations": torch.eye(3)},
        {"relations": "tensor", "normalize": "choice", "temperature": "positive",
         "top_k": optional("count")},
    ),
    "relation_consistency": Case(
        tr.relation_consistency,
        lambda: {"predictions": torch.rand(3, 3, 4, 1), "targets": torch.rand(3, 4, 1),
                 "relations": torch.eye(3), "loss_fn": mse_loss},
        {"predictions": "tensor", "targets": "tensor", "relations": "tensor", "loss_fn": "function",
         "mask": optional("tensor"), "mixture": "choice", "normalize": "choice",
         "temperature": "positive", "top_k": optional("count"), "alignment": optional("tensor")},
    ),
    "sinkhorn": Case(
        tr.relations.sinkhorn, lambda: {"prototypes": torch.rand(3, 2, 2)},
        {"prototypes": "tensor", "temperature": "positive", "iterations": "count"},
    ),
    "hungarian": Case(
        tr.relations.hungarian, lambda: {"prototypes": torch.rand(3, 2, 2)}, {"prototypes": "tensor"}
    ),
    "best_models": Case(
        best_models, lambda: {**SAID, "neighbours": 2},
        {"predictions": "tensor", "labels": "tensor", "neighbours": "whole", "mask": optional("tensor")},
    ),
    "gaussian_posterior": Case(
        gaussian_posterior, lambda: {**SAID, "noise": 0.1},
        {"predictions": "tensor", "labels": "tensor", "noise": "positive", "spread": "number",
         "neighbours": "count", "mask": optional("tensor"), "prior": optional("tensor"),
         "kernel": optional("tensor")},
    ),
    "posterior_mean": Case(
        posterior_mean,
        lambda: {"posterior": gaussian_posterior(**SAID, noise=0.1), "predictions": torch.rand(3, 4, 6)},
        {"posterior": "instance", "predictions": "tensor", "prior": optional("tensor"),
         "kernel": optional("tensor")},
    ),
    "posterior_variance": Case(
        posterior_variance,
        lambda: {"posterior": gaussian_posterior(**SAID, noise=0.1), "predictions": torch.rand(3, 4, 6)},
        {"posterior": "instance", "predictions": "tensor", "kernel": optional("tensor"),
         "kernel_itself": optional("tensor"), "of_labels": "flag"},
    ),
    "UniformTaskSampler": Case(
        tr.samplers.UniformTaskSampler, lambda: {"task_ids": range(4), "batch_size": 2}, SAMPLER
    ),
    "HardTaskSampler": Case(
        tr.samplers.HardTaskSampler, lambda: {"task_ids": range(4), "batch_size": 2},
        {**SAMPLER, "temperature": "positive", "warmup": "whole", "floor": "share", "every": "count",
         "loss_fn": optional("function")},
    ),
    "AdaptiveTaskSampler": Case(
        tr.AdaptiveTaskSampler, lambda: {"task_ids": range(4), "batch_size": 2},
        {**SAMPLER, "scores": "scores", "warmup": "whole", "floor": "share", "every": "count",
         "loss_fn": optional("function"), "extractor": optional("module"),
         "held_out": "held out", "share": optional("share"), "importance": "flag", "decay": "positive",
         "lr": "positive", "hidden": "count"},
    ),
    "update": Case(
        lambda **k: tr.AdaptiveTaskSampler(range(3), 3, every=1, warmup=0).update(**k),
        lambda: {"learner": learner(), "batch": batch(range(3))},
        {"learner": "instance", "batch": "instance", "reuse": "flag"},
    ),
    "weigh": Case(
        lambda **k: tr.AdaptiveTaskSampler(warmup=0).weigh(**k),
        lambda: {"learner": learner(), "batch": batch()},
        {"learner": "instance", "batch": "instance"},
    ),
    "reweight": Case(
        lambda **k: tr.AdaptiveTaskSampler(batch_size=2, warmup=0).reweight(**k),
        lambda: {"candidates": batch(), "learner": learner()},
        {"candidates": "instance", "learner": optional("instance")},
    ),
    "lookahead": Case(
        tr.samplers.lookahead,
        lambda: {"engine": "loop", "learner": learner(), "batch": batch(), "held_out": batch(),
                 "weights": torch.ones(3) / 3, "loss_fn": mse_loss, "lr": 0.1},
        {"engine": "choice", "learner": "instance", "batch": "instance", "held_out": "instance",
         "weights": "tensor", "loss_fn": "function", "lr": "positive"},
    ),
    "register_score": Case(
        tr.samplers.register_score, lambda: {"name": "new", "score": abs},
        {"name": "text", "score": "function"},
    ),
    "TaskMemory": Case(
        tr.TaskMemory, lambda: {"learner": learner()},
        {"learner": optional("instance"), "loss_fn": "function", "rule": "choice",
         "kernel": optional("function"), "neighbours": "count", "spread": "number",
         "noise": optional("positive"), "share": optional("part"), "temperature": "positive",
         "mixture": "choice", "top_k": "count", "chunk_size": "count"},
    ),
    "remember": Case(
        lambda **k: tr.TaskMemory(learner()).remember(**{"held_out": 0.0, **k}),
        lambda: {"tasks": batch(), "steps": 1},
        {"tasks": "pair", "steps": optional("whole"), "held_out": "share below 1"},
        {"tasks": "tasks|x must"},
    ),
    "remember_models": Case(
        lambda **k: tr.TaskMemory().remember_models(**k),
        lambda: {"models": [net()] * 3},
        {"models": "models", "tasks": optional("pair"), "together": "flag"}, {"tasks": "tasks|x must"},
    ),
    "tune": Case(
        lambda **k: memory().tune(**k), lambda: {"tasks": batch()},
        {"tasks": optional("instance"), "shots": optional("count"), "own": "own models"},
    ),
    "recall": Case(
        lambda **k: memory().adapt(**k), lambda: {"support": pair(3, 4)},
        {"support": "pair", "loss_fn": optional("function"), "steps": optional("whole"), "own": "own models"},
        {"support": "support|x must"},
    ),
    "recalled": Case(
        lambda **k: memory().adapt(pair(3, 4))(**k), lambda: {"x": pair(3, 4)[0]},
        {"x": "tensor", "mask": optional("tensor"), "std": "flag"},
    ),
    "RelationMonitor": Case(
        tr.RelationMonitor, lambda: {"writer": Writer()},
        {"writer": "instance", "every": "count", "names": "known", "families": "known",
         "similarity": optional("function"), "share": "part"},
    ),
    "plot_relations": Case(
        tr.plot_relations, lambda: {"relations": torch.eye(3)},
        {"relations": "tensor", "names": "ids", "title": "text", "cluster": "flag", "scale": "count"},
    ),
    "plot_memory": Case(
        lambda **k: tr.plot_memory(**{"memory": curve_memory(), **k}),
        lambda: {"support": curve(), "query": None},
        {"memory": "instance", "support": "pair", "query": optional("query"), "own": optional("function"),
         "models": "whole", "title": "text"},
        {"support": "support|x must", "query": "query|x must"},
    ),
    "monitor.memory": Case(
        lambda **k: tr.RelationMonitor(Writer()).memory(**k), lambda: {"answer": memory().adapt(pair(3, 4))},
        {"answer": "instance", "step": optional("whole")},
    ),
    "MetaStep": Case(
        tr.MetaStep, lambda: {"learner": learner(), "regularizer": reg()},
        {"learner": "instance", "regularizer": "instance", "reduction": "choice", "check": "flag"},
    ),
    "meta_step": Case(
        lambda **k: tr.MetaStep(learner(), reg())(**k), lambda: {"batch": batch()}, {"batch": "instance"},
    ),
    "doctor": Case(
        tr.doctor, lambda: {"model": net(), "batch": batch()},
        {"model": "instance", "batch": "instance", "loss_fn": optional("function")},
    ),
}  # fmt: skip
WRONG |= {
    "name": {"number": 3, "list": [], "tensor": torch.zeros(2)},
    "text": {"none": None, "number": 3, "list": [], "tensor": torch.zeros(2)},
    "select": {"text": "x", "zero": 0, "negative": -1, "above": 1.5, "nan": NAN, "true": True, "list": []},
    "scores": {"none": None, "number": 3, "text": "diversity", "empty": [], "unknown": ["no"],
               "unhashable": [[]], "twice": ["entropy", "entropy"]},
    "held out": {"number": 3, "text": "x", "list": [], "tensor": torch.zeros(2)},
    "share below 1": {**NOT_NUMBERS, "negative": -0.1, "above": 0.95, "nan": NAN},
    "models": {**OTHERS, "one": abs, "of numbers": [1, 2, 3]},
    "own models": {"number": 3, "text": "x", "list": [], "two": [abs, abs]},
    "known": {"number": 3, "text": "x", "list": [], "tensor": torch.zeros(2)},
}  # fmt: skip

ACCEPTED = {
    ("doctor", "model", "module"): "a module is what it takes",
    ("plot_relations", "names", "unhashable"): "names are only written, by str()",
}
"""What is right after all, with the reason."""


def refusal(case: Case, argument: str, value: Any) -> str:
    """What the error says; nothing if there is none."""
    try:
        case.call(**{**case.good(), argument: value})
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _scores_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trlearner.samplers.scores.SCORES", dict(SCORES))


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, case in CASES.items() for argument in case.kinds],
)
def test_wrong_values_of_an_argument_are_refused_by_name(name: str, argument: str):
    case = CASES[name]
    text = (case.names or {}).get(argument, argument)
    texts = {
        label: refusal(case, argument, value)
        for label, value in WRONG[case.kinds[argument]].items()
        if (name, argument, label) not in ACCEPTED
    }
    assert texts
    unnamed = {
        label: found for label, found in texts.items() if not re.search(rf"\b({text})", found)
    }
    assert not unnamed
    # Python's own errors name neither what was given nor what to do.
    assert not [t for t in texts.values() if "unexpected keyword" in t or len(t) <= 20]


@pytest.mark.parametrize("name", CASES)
def test_good_arguments_are_taken(name: str):
    case = CASES[name]
    case.call(**case.good())
    assert set(case.good()) <= set(case.kinds)  # and each is given wrong values above
