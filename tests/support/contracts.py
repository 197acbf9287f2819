"""Small problems in float64, and what the formulas of `reference` say about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trlearner as tr
from trlearner.engines import choose
from trlearner.engines.adapted import Adapted

EAGER = ("higher", "loop", "channels_last", "batched")
ENGINES = (*EAGER, "traced")
LEARNERS = ("maml", "metasgd", "anil", "tnet")
CLASSIFIERS = ("protonet", "bayes classes")
SOLVED = (*CLASSIFIERS, "bayes")
"""Learners that take no inner steps."""
ENCODERS = ("input", "labelled", "update", "function")


def later(*values: object) -> list[object]:
    """Parameters of a test that only `make test-all` runs: each case like one that `make test` has."""
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


BATCHED_FIRST = ("batched", *later(*(name for name in ENGINES if name != "batched")))
"""All engines, for tests that may leave the others to `make test-all`."""

TASKS, SUPPORT, QUERIES, INPUTS, HIDDEN, OUTPUTS = 4, 5, 6, 2, 5, 3


class Net(nn.Module):
    """head(tanh(body(x))), the network of `reference.mlp`."""

    def __init__(self, inputs: int = INPUTS, hidden: int = HIDDEN, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def net(seed: int = 0, **sizes: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**sizes).double()


def regression_batch(seed: int = 0, tasks: int = TASKS, support: int = SUPPORT) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(seed)

    def draw(samples: int, width: int) -> Tensor:
        return torch.randn(tasks, samples, width, generator=g, dtype=torch.float64)

    return tr.TaskBatch(
        support=(draw(support, INPUTS), draw(support, OUTPUTS)),
        query=(draw(QUERIES, INPUTS), draw(QUERIES, OUTPUTS)),
    )


def class_batch(seed: int = 0, tasks: int = TASKS, ways: int = OUTPUTS) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(seed)

    def draw(shots: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(ways).repeat(shots).repeat(tasks, 1)
        y = torch.stack([row[torch.randperm(len(row), generator=g)] for row in y])
        x = torch.randn(*y.shape, INPUTS, generator=g, dtype=torch.float64)
        x = x + 0.7 * torch.nn.functional.one_hot(y, ways)[..., :INPUTS]
        return x, y

    return tr.TaskBatch(support=draw(2), query=draw(2), ways=ways)


def learner(name: str, model: nn.Module, engine: str, **options: object) -> tr.Learner:
    """A learner whose every part matters: rates differ and transformations are no identity."""
    options = {"lr": 0.3, "steps": 2, "engine": engine, **options}
    if name == "protonet":
        return tr.ProtoNet(model, engine=engine)
    if name in ("bayes", "bayes classes"):
        return bayes_head(model, engine, OUTPUTS if name == "bayes classes" else None)
    if name == "anil":
        return tr.ANIL(model, head="head", **options)
    made = {"maml": tr.MAML, "metasgd": tr.MetaSGD, "tnet": tr.TNet}[name](model, **options)
    made.double()
    g = torch.Generator().manual_seed(1)
    for key, p in made.named_parameters():
        if not key.startswith("model."):
            p.data += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return made


def bayes_head(model: nn.Module, engine: str, ways: int | None = None) -> tr.BayesHead:
    """On what the network returns; its prior is neither zero nor the identity."""
    outputs = OUTPUTS if ways is None else 1
    made = tr.BayesHead(model, OUTPUTS, outputs, ways, engine=engine).double()
    g = torch.Generator().manual_seed(1)
    for key, p in made.named_parameters():
        if not key.startswith("model."):
            p.data += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return made


def encoder(name: str, model: nn.Module) -> tr.Encoder:
    """An encoder for `regression_batch`; equal parameters at every call."""
    if name == "input":
        return tr.InputEncoder(model.body, dim=HIDDEN)
    if name == "update":
        return tr.UpdateEncoder(dim=8)
    g = torch.Generator().manual_seed(2)
    if name == "function":
        return tr.FunctionEncoder(torch.randn(3, INPUTS, generator=g).double(), outputs=OUTPUTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return tr.LabelledEncoder(None, dim=4, features=INPUTS, targets=OUTPUTS, hidden=5).double()


def gradients(loss: Tensor, *modules: nn.Module) -> dict[str, Tensor]:
    """The gradient of `loss` for every parameter of the modules, zero where it has none."""
    named = {
        f"{i}.{name}": p
        for i, module in enumerate(modules)
        for name, p in module.named_parameters()
    }
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def directions(shape: tuple[int, ...], count: int = 3) -> Tensor:
    """Random directions, each of which meets every entry of a tensor: ``[count, *shape]``."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=g, dtype=torch.float64)


def slopes(function: Callable[[], Tensor], tensor: Tensor) -> Tensor:
    """Finite differences along `directions`: as strict as those of every entry, and far cheaper."""
    ways = directions(tensor.shape)
    return torch.tensor(
        [reference.slope(function, tensor, way) for way in ways], dtype=torch.float64
    )


def along(gradient: Tensor) -> Tensor:
    """What `slopes` must be by this gradient."""
    ways = directions(gradient.shape)
    return (ways * gradient).reshape(len(ways), -1).sum(1)


@dataclass
class Truth:
    """What the formulas say."""

    loss: Tensor
    task_loss: Tensor
    relation_loss: Tensor
    relations: Tensor
    weights: Tensor


def tasks_of(batch: tr.TaskBatch) -> list[reference.Task]:
    return [(batch.support.real(i), batch.query.real(i)) for i in range(len(batch))]


def truth(
    name: str,
    made: tr.Learner,
    reg: tr.TRLearner,
    batch: tr.TaskBatch,
    first_order: bool = False,
    **options: object,
) -> Truth:
    """The regularized meta-loss of one of our learners on a `Net`, by loops."""
    params = dict(made.model.named_parameters())
    adapt_task, predict, g = learner_by_formula(name, made, params, reg.loss_fn, first_order)
    encoder = reg.encoder
    if isinstance(encoder, tr.InputEncoder):

        def embed(task: reference.Task) -> Tensor:
            return reference.input_embedding(g, [task[0][0]])
    else:

        def embed(task: reference.Task) -> Tensor:
            return labelled_embedding(encoder, lambda x: x, task, batch.ways)

    found = reference.meta_loss(
        tasks_of(batch),
        adapt_task,
        predict,
        embed,
        reg.relation.weight,
        reg.lam,
        reg.loss_fn,
        **options,
    )
    return Truth(*found)


@dataclass
class Problem:
    """A meta-step, and what the formulas say about it: nothing here depends on the engine."""

    learner: tr.Learner
    reg: tr.TRLearner
    batch: tr.TaskBatch
    truth: Truth
    gradients: dict[str, Tensor]

    def agrees(self, engine: str) -> None:
        """Runs the step on an engine and compares all of it."""
        self.learner.engine = engine
        out = self.reg(self.learner, self.batch)
        assert out.engine == engine
        for part in fields(Truth):
            close(getattr(out, part.name), getattr(self.truth, part.name))
        found = gradients(out.loss, self.learner, self.reg)
        assert found.keys() == self.gradients.keys()
        for name, expected in self.gradients.items():
            close(found[name], expected)


def problem(
    name: str,
    made: tr.Learner,
    reg: tr.TRLearner,
    batch: tr.TaskBatch,
    first_order: bool = False,
    **options: object,
) -> Problem:
    """Arguments as for `truth`."""
    expected = truth(name, made, reg, batch, first_order, **options)
    return Problem(made, reg, batch, expected, gradients(expected.loss, made, reg))


def labelled_embedding(
    encoder: tr.LabelledEncoder,
    g: Callable[[Tensor], Tensor],
    task: reference.Task,
    ways: int | None,
) -> Tensor:
    weights = {
        "A": encoder.of_features.weight,
        "a": encoder.of_features.bias,
        "B": encoder.of_targets.weight,
        "C": encoder.out.weight,
        "c": encoder.out.bias,
    }
    (x, y), _ = task
    if y.is_floating_point():
        return reference.labelled_regression_embedding(g, weights, x, y)
    return reference.labelled_classification_embedding(g, weights, x, y, ways)


def learner_by_formula(
    name: str,
    made: tr.Learner,
    params: dict[str, Tensor],
    loss_fn: tr.types.LossFn,
    first_order: bool,
) -> tuple[Callable, Callable, Callable]:
    """adapt_task(support), predict(adapted, x) and g(x) = the learner's `body` layer."""

    def body(x: Tensor) -> Tensor:
        return x @ params["body.weight"].T + params["body.bias"]

    if name == "protonet":

        def extract(x: Tensor) -> Tensor:
            return reference.mlp(params, x)

        return (
            lambda support: reference.prototypes(extract, *support, OUTPUTS),
            lambda means, x: reference.prototype_logits(extract, means, x),
            body,
        )
    if name in ("bayes", "bayes classes"):
        C, noise, prior = made.prior_factor, made.log_noise.exp(), torch.zeros(OUTPUTS + 1, OUTPUTS)
        prior, scale = prior.double(), 1.0
        if name == "bayes":
            prior = made.prior_mean
        else:
            scale = made.log_scale.exp()

        def solved(support: reference.Pair) -> dict[str, Tensor]:
            x, y = support
            targets = y if name == "bayes" else torch.eye(OUTPUTS).double()[y]
            head = reference.bayes_weights(reference.mlp(params, x), targets, prior, C, noise)
            return {"head": head}

        def read(adapted: dict[str, Tensor], x: Tensor) -> Tensor:
            return scale * reference.affine(reference.mlp(params, x), adapted["head"])

        return solved, read, body
    predict = reference.mlp
    names = list(params)
    g = body

    def rate(parameter: str, step: int) -> float | Tensor:
        return 0.3

    if name == "anil":
        names = reference.head_names(params)
    if name == "metasgd":
        rates = dict(made.rates.named_parameters())

        def rate(parameter: str, step: int) -> float | Tensor:
            return rates[parameter.replace(".", "/")]

    if name == "tnet":
        transforms = {key: t[0] for key, t in made.transforms.named_parameters()}

        def predict(adapted: dict[str, Tensor], x: Tensor) -> Tensor:
            return reference.tnet_mlp(adapted, transforms, x)

        def g(x: Tensor) -> Tensor:
            return body(x) @ transforms["body"].T

    def adapt_task(support: reference.Pair) -> dict[str, Tensor]:
        def run(theta: dict[str, Tensor], x: Tensor) -> Tensor:
            return predict(theta, x)

        return reference.adapt(run, params, names, *support, loss_fn, rate, made.steps, first_order)

    return adapt_task, predict, g


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Asserts that two tensors agree, both absolutely and relative to the larger."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    worst = (found - expected).abs().max().item()
    scale = 1 + expected.abs().max().item()
    assert worst <= tolerance * scale, f"differ by {worst:.3g}, allowed {tolerance * scale:.3g}"


def cross_entropy(predictions: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(predictions, targets)


def models(learner: tr.Learner) -> Adapted:
    """Models of a learner of which nothing is asked but whose they are and where it stands."""
    return Adapted(learner, learner.state(), {}, choose.ENGINES["loop"])
