"""From a config to what it names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trlearner.experiments.data.problem import Builder, Finite, Problem, Request
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import DOMAINS

import trlearner as tr


def problems() -> dict[str, Builder]:
    """Every problem there is, by name."""
    found: dict[str, Builder] = {}
    for domain in DOMAINS:
        found |= import_module(f"trlearner.experiments.data.{domain}").PROBLEMS
    return found


ASKED = ("shots", "queries", "ways", "train_tasks", "pool", "options")
"""The settings that a problem is made with."""


def make_problem(config: Config, data_dir: Path | None, device: str) -> Problem:
    """The problem that a config names.

    Raises:
        ValueError: There is no such problem, or its options are of the wrong type.
        MissingData: Its data is not there.
    """
    known = problems()
    if config.problem not in known:
        raise ValueError(f"problem must be one of {', '.join(known)}, got {config.problem!r}.")
    given = {name: getattr(config, name) for name in ASKED}
    try:
        return known[config.problem](Request(data_dir=data_dir, device=device, **given))
    except (TypeError, ArithmeticError, AttributeError) as error:
        if not config.options:
            raise
        raise ValueError(
            f"{config.problem} cannot be made with the options {config.options}: {error}. "
            "The problem's module says what each option may be."
        ) from error


def make_learner(config: Config, problem: Problem, engine: str) -> tr.Learner:
    """The base learner, with a new network from torch's global random state."""
    network = problem.network()
    options: dict[str, Any] = {"lr": config.inner_lr, "steps": config.inner_steps, "engine": engine}
    if config.learner == "protonet":
        return tr.ProtoNet(problem.features(network) or network, engine=engine)
    if config.learner == "bayes-head":
        return _bayes_head(config, problem, network, engine)
    if config.learner == "fomaml":
        return tr.MAML(network, first_order=True, **options)
    if config.learner == "anil":
        return tr.ANIL(network, head=problem.head, **options)
    learners: Mapping[str, Any] = {"maml": tr.MAML, "metasgd": tr.MetaSGD, "tnet": tr.TNet}
    return learners[config.learner](network, **options)


def _bayes_head(config: Config, problem: Problem, network: nn.Module, engine: str) -> tr.BayesHead:
    """A closed-form head in place of the network's own."""
    head = network.get_submodule(problem.head)
    assert isinstance(head, nn.Linear)  # as all networks of the experiments have
    setattr(network, problem.head, nn.Identity())
    if problem.loss_fn is nn.functional.cross_entropy:
        return tr.BayesHead(network, head.in_features, ways=config.ways, engine=engine)
    return tr.BayesHead(network, head.in_features, head.out_features, engine=engine)


def make_regularizer(
    config: Config,
    problem: Problem,
    learner: tr.Learner,
    device: str,
    sampler: tr.samplers.TaskSampler | None = None,
) -> tr.TRLearner:
    """TRLearner around the learner's own features; with ``lam=0`` it is the learner alone."""
    return tr.TRLearner(
        encoder=_encoder(config, problem, learner.model, device),
        heads=config.heads,
        lam=config.lam,
        loss_fn=problem.loss_fn,
        normalize=config.normalize,
        mixture=config.mixture,
        temperature=config.temperature,
        align=problem.align if config.align == "auto" else config.align,
        top_k=config.top_k,
        queries=config.relation_queries,
        sampler=sampler,
        generator=torch.Generator().manual_seed(config.seed),
    )


CANDIDATES = 4
"""From an endless stream a sampler chooses among so many times the tasks that it keeps."""


def make_sampler(
    config: Config, problem: Problem, learner: tr.Learner
) -> tr.AdaptiveTaskSampler | tr.samplers.HardTaskSampler | None:
    """Over the training tasks where they are a finite set, else over a stream of candidates."""
    if config.sampler == "none":
        return None
    names = problem.source.names if isinstance(problem.source, Finite) else None
    generator = torch.Generator().manual_seed(config.seed)
    if config.sampler == "hard":
        return tr.samplers.HardTaskSampler(names, config.tasks, generator=generator)
    return tr.AdaptiveTaskSampler(
        names,
        config.tasks,
        extractor=_features(config, problem, learner.model),
        generator=generator,
    )


def _features(config: Config, problem: Problem, network: nn.Module) -> nn.Module | None:
    """The part of a network that tasks are seen through; ``None`` for inputs as they are."""
    return network if config.learner == "protonet" else problem.features(network)


def _encoder(config: Config, problem: Problem, network: nn.Module, device: str) -> tr.Encoder:
    kind = problem.encoder if config.encoder == "auto" else config.encoder
    if kind == "update":
        return tr.UpdateEncoder(dim=config.dim)
    features = _features(config, problem, network)
    with torch.random.fork_rng(), torch.no_grad():
        batch = problem.source.sample("train", 1, torch.Generator(device).manual_seed(0))
        x, y = batch.support.x[0], batch.support.y[0]
        width = (x if features is None else features(x)).flatten(1).shape[1]
    if kind == "input":
        return tr.InputEncoder(features, dim=width)
    # Widths are settled here, so that an optimizer made next sees every parameter.
    targets = y.flatten(1).shape[1] if y.is_floating_point() else 1
    return tr.LabelledEncoder(features, dim=config.dim, features=width, targets=targets)
