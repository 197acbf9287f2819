"""Everything that a case is made of, drawn from one number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trlearner as tr
from fuzz.draw_model import Model, Net, build_model, disturb, draw_inputs, draw_model
from trlearner.tasks.nested import flat

CLASSES = ("classes", "classes smoothed", "classes weighted")
OUTPUTS = {"values": (2,), "one value": (1,), "scalars": (), "grid": (2, 2), "shares": (3,)}
WAYS = 3
SOLVED = {"protonet": CLASSES, "bayes": (*CLASSES, "values", "one value", "shares")}
"""Learners without inner steps, and the targets that they can solve for."""
FEATURES, DIM = 4, 5


@dataclass(frozen=True)
class Case:
    """What one number draws: plain values, which print and compare."""

    number: int
    model: Model
    targets: str
    tasks: int
    support: int
    queries: int
    unequal: bool
    single: bool  # float32, for engines that are compared in it
    learner: str
    options: dict[str, Any]
    encoder: str
    extractor: str
    encoding: dict[str, Any]
    regularizer: dict[str, Any]
    inputs: str = "tensor"
    structured: bool = False  # predictions and targets of two tensors

    @property
    def ways(self) -> int | None:
        return WAYS if self.targets in CLASSES else None

    @property
    def outputs(self) -> tuple[int, ...]:
        return OUTPUTS.get(self.targets, (WAYS,))


@dataclass
class Problem:
    """A case made real."""

    case: Case
    learner: tr.Learner
    regularizer: tr.TRLearner
    batch: tr.TaskBatch


class Learned(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.2))

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(predictions, targets)


def draw(number: int, single: bool = False) -> Case:
    """The case of this number; `single` is one in float32: short, and without what is ill-conditioned."""
    random = Random(number)
    model = draw_model(random)
    if single:
        model = replace(model, layers=model.layers[:1])
    learner = random.choice(["maml", "maml", "metasgd", "anil", "tnet", "protonet", "bayes"])
    targets = random.choice(SOLVED.get(learner, (*CLASSES, *OUTPUTS, *OUTPUTS)))
    encoder = random.choice(["input", "labelled", "update", "function"])
    if encoder == "update" and learner in SOLVED:
        encoder = "input"
    case = Case(
        number=number,
        model=model,
        targets=targets,
        tasks=random.choice([2, 3, 3, 3, 4]),
        support=random.choice([1, 3, 4, 5]),
        queries=random.choice([2, 3, 4]),
        unequal=random.random() < 0.25,
        single=single,
        learner=learner,
        options=_learner_options(random, learner, single),
        encoder=encoder,
        extractor=random.choice(["inputs", "body", "body", "own"]),
        encoding=_encoder_options(random, encoder),
        regularizer=_options(random, learner, encoder, targets, single),
    )
    if encoder in ("input", "labelled"):
        case.encoding["select"] = random.choice([None, None, 2, 0.5])
    plain = encoder == "function" or (encoder != "update" and case.extractor != "inputs")
    if plain or learner in SOLVED:
        return case
    whole = learner != "anil" and case.regularizer["head"] is None and targets in OUTPUTS
    inputs = random.choice(["tensor", "dict", "tuple"])
    return replace(case, inputs=inputs, structured=whole and random.random() < 0.5)


def _learner_options(random: Random, learner: str, single: bool) -> dict[str, Any]:
    if learner in SOLVED:
        return {}
    rates = [0.1, [0.15, 0.05], {"": 0.1, "0.bias" if learner == "anil" else "head": [0.02, 0.2]}]
    options: dict[str, Any] = {
        "lr": random.choice(rates),
        "steps": random.choice([0, 1, 1, 2, 2, 3]),
        "first_order": random.random() < 0.25,
    }
    if single:
        options["steps"] = min(options["steps"], 1)
    if learner == "metasgd":
        options |= {"per": random.choice(["element", "layer"]), "per_step": random.random() < 0.5}
    return options


def _encoder_options(random: Random, encoder: str) -> dict[str, Any]:
    options: dict[str, Any] = {"detach": random.random() < 0.2}
    if encoder == "input":
        options["metadata"] = random.choice(["support", "all"])
    if encoder == "labelled":
        options["lazy"] = random.random() < 0.5
    return options


def _options(
    random: Random, learner: str, encoder: str, targets: str, single: bool
) -> dict[str, Any]:
    pools = encoder in ("input", "labelled")
    kinds = ["auto", "values"] if targets in CLASSES else ["auto"]
    mixture = "logits" if targets == "shares" else random.choice(kinds)
    weights = ["sum", "softmax"] if single else ["sum", "softmax", "quotient"]
    normalize = random.choice(weights)
    if mixture == "logits" or (targets in CLASSES and mixture == "auto"):
        normalize = random.choice(["sum", "softmax"])
    options = {
        "heads": random.choice([1, 3]),
        "lam": random.choice([0.1, 0.7, 0.7, 2.0]) if random.random() < 0.95 else 0.0,
        "normalize": normalize,
        "temperature": random.choice([0.1, 0.5]),
        "mixture": mixture,
        "align": random.choice(["none", "sinkhorn", "sinkhorn" if single else "hungarian"]),
        "top_k": random.choice([None, None, 1, 2]),
        "queries": random.choice([1.0, 1.0, 0.5]),
        "head": "head" if learner not in SOLVED and random.random() < 0.2 else None,
        "chunk_size": random.choice([None, None, 1, 2, None if single else "auto"]),
    }
    if not pools or targets not in CLASSES:
        options["align"] = "none"
    return options


# ---- from plain values to objects ----------------------------------------------------------------


def build(case: Case) -> Problem:
    """The same objects at every call."""
    model = build_model(case.model, case.outputs, case.number)
    model.structured = case.structured
    batch = _batch(case)
    learner = _learner(case, model)
    reg = _regularizer(case, model, learner, batch)
    problem = Problem(case, learner, reg, batch)
    if case.single:
        learner.float()
        reg.float()
        problem.batch = batch.to(torch.float32)
    return problem


def _learner(case: Case, model: Net) -> tr.Learner:
    if case.learner in SOLVED:
        learner = _solved(case, model)
    elif case.learner == "anil":
        learner = tr.ANIL(model, head="head", **case.options)
    else:
        kinds = {"maml": tr.MAML, "metasgd": tr.MetaSGD, "tnet": tr.TNet}
        learner = kinds[case.learner](model, **case.options)
    own = [p for name, p in learner.named_parameters() if not name.startswith("model.")]
    disturb(own, case.number + 1, 0.02)
    return learner


def _solved(case: Case, model: Net) -> tr.Learner:
    """A learner without inner steps, on the model's features or on its outputs."""
    outputs = torch.Size(case.outputs).numel()
    extractor, dim = (model.body, model.features) if case.number % 2 else (model, outputs)
    if case.learner == "protonet":
        return tr.ProtoNet(extractor)
    sizes = {"outputs": outputs} if case.ways is None else {"ways": case.ways}
    return tr.BayesHead(extractor, dim, **sizes).double()


def _regularizer(case: Case, model: Net, learner: tr.Learner, batch: tr.TaskBatch) -> tr.TRLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.number + 2)
        encoder = _encoder(case, model, learner, batch)
        reg = tr.TRLearner(encoder, loss_fn=_loss(case), **case.regularizer).double()
        encoder.prepare(learner, batch)
    return reg


def _encoder(case: Case, model: Net, learner: tr.Learner, batch: tr.TaskBatch) -> tr.Encoder:
    options = dict(case.encoding)
    if case.encoder == "update":
        return tr.UpdateEncoder(DIM, **options)
    if case.encoder == "function":
        g = torch.Generator().manual_seed(case.number + 3)
        probe = draw_inputs(case.model, 3, generator=g)
        outputs = torch.Size(case.outputs).numel()
        return tr.FunctionEncoder(probe, outputs, **options)
    extractor: nn.Module | None = None
    own = case.extractor == "own"
    width = flat(batch.support.x, 2).shape[-1]
    if case.extractor == "body":
        extractor, width = model.body, model.features
    elif own:
        extractor = nn.Sequential(nn.Flatten(), nn.LazyLinear(FEATURES, dtype=torch.float64))
        extractor(batch.support.x[0].double())
        extractor, width = Floats(extractor), FEATURES
    if case.encoder == "input":
        return tr.InputEncoder(extractor, width, own=own, **options)
    widths = {"features": width, "targets": flat(batch.support.y, 2).shape[-1]}
    if options.pop("lazy"):
        widths = {}
    return tr.LabelledEncoder(extractor, DIM, hidden=6, own=own, **widths, **options)


class Floats(nn.Module):
    """An extractor that takes tokens as well."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.inner[1].weight.dtype))


class OfBoth:
    """The loss of predictions of two tensors."""

    def __init__(self, loss: tr.types.LossFn) -> None:
        self.loss = loss

    def __call__(self, p: dict[str, Any], y: dict[str, Any]) -> Tensor:
        return self.loss(p["one"], y["one"]) + self.loss(p["rest"][0], y["rest"][0])


def _loss(case: Case) -> tr.types.LossFn:
    loss = _loss_of_one(case)
    return OfBoth(loss) if case.structured else loss


def _loss_of_one(case: Case) -> tr.types.LossFn:
    if case.targets == "classes smoothed":
        return nn.CrossEntropyLoss(label_smoothing=0.1)
    if case.targets == "classes weighted":
        return nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    if case.targets in CLASSES or case.targets == "shares":
        return F.cross_entropy
    return (F.mse_loss, F.smooth_l1_loss, Learned())[case.number % 3]


def _batch(case: Case) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(case.number + 4)
    pairs = []
    for task in range(case.tasks):
        sizes = case.support, case.queries
        if case.unequal and task:
            sizes = tuple(int(torch.randint(1, size + 1, (), generator=g)) for size in sizes)
        pairs.append(tuple(_samples(case, size, g) for size in sizes))
    return tr.TaskBatch.from_tasks(pairs, ways=case.ways)


def _samples(case: Case, size: int, g: torch.Generator) -> tuple[Any, Any]:
    x, y = _pair(case, size, g)
    if case.inputs != "tensor":
        shift = torch.randn(size, generator=g, dtype=torch.float64)
        x = {"x": x, "shift": shift} if case.inputs == "dict" else (x, shift)
    return x, {"one": y, "rest": (y.flip(0),)} if case.structured else y


def _pair(case: Case, size: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = draw_inputs(case.model, size, generator=g)
    if case.targets in CLASSES:
        y = torch.arange(size) % WAYS
        return x, y[torch.randperm(size, generator=g)]
    y = torch.randn(size, *case.outputs, generator=g, dtype=torch.float64)
    return x, y.softmax(-1) if case.targets == "shares" else y
