"""Only heads are crossed: the loops say the same, and bodies run once for each task."""

from __future__ import annotations

import functools
from typing import Any

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn

import trlearner as tr

HEAD = {"head": "head"}


def regularizer(model: nn.Module, **options: Any) -> tr.TRLearner:
    torch.manual_seed(3)
    encoder = tr.InputEncoder(model.body, dim=contracts.HIDDEN)
    generator = torch.Generator().manual_seed(5)
    return tr.TRLearner(encoder=encoder, generator=generator, **{"lam": 0.7, **options}).double()


def agree(found: tr.Output, expected: Any, *modules: nn.Module) -> None:
    for name in ("loss", "task_loss", "relation_loss"):
        close(getattr(found, name), getattr(expected, name))
    one = contracts.gradients(found.loss, *modules)
    other = contracts.gradients(expected.loss, *modules)
    for name, gradient in one.items():
        close(gradient, other[name])


@functools.cache
def heads_alone(name: str, first_order: bool) -> contracts.Problem:
    model, batch = contracts.net(), contracts.regression_batch()
    learner = contracts.learner(name, model, "loop", first_order=first_order)
    reg = regularizer(model, **HEAD)
    return contracts.problem(name, learner, reg, batch, first_order, heads_only=True)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("engine", contracts.BATCHED_FIRST)
@pytest.mark.parametrize("name", contracts.LEARNERS)
def test_the_loops_say_the_same(name: str, engine: str, first_order: bool) -> None:
    heads_alone(name, first_order).agrees(engine)


def test_it_is_another_term_unless_bodies_are_shared() -> None:
    batch = contracts.regression_batch()
    apart = {}
    for name in ("maml", "anil"):
        model = contracts.net()
        learner = contracts.learner(name, model, "loop")
        whole, heads = (regularizer(model, **o)(learner, batch) for o in ({}, HEAD))
        apart[name] = abs(float(whole.relation_loss - heads.relation_loss))
        close(whole.task_loss, heads.task_loss, 1e-12)
    assert apart["maml"] > 1e-4
    assert apart["anil"] < 1e-12


@pytest.mark.parametrize(
    "options", [{"top_k": 2}, {"chunk_size": 1}, {"normalize": "softmax", "top_k": 1}], ids=str
)
def test_it_goes_with_other_options(options: dict[str, Any]) -> None:
    model, batch = contracts.net(), contracts.regression_batch()
    learner = contracts.learner("maml", model, "batched")
    reg = regularizer(model, **HEAD, **options)
    formula = {k: v for k, v in options.items() if k != "chunk_size"}
    formula |= {"temperature": reg.temperature} if "normalize" in options else {}
    expected = contracts.truth("maml", learner, reg, batch, heads_only=True, **formula)
    agree(reg(learner, batch), expected, learner, reg)


class Normed(contracts.Net):
    """head(tanh(norm(body(x)))), whose samples see each other before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(contracts.HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.body(x))))


@pytest.mark.parametrize("engine", ["loop", "channels_last", "batched"])
def test_with_batch_norm_chosen_queries_are_those_of_whole_bodies(engine: str) -> None:
    model, batch = Normed().double(), contracts.regression_batch()
    learner = contracts.learner("maml", model, engine)
    reg = regularizer(model, **HEAD, queries=0.5)
    out = reg(learner, batch)
    # By hand: each body on all of its task's queries, each other head on the chosen ones.
    keys = torch.rand(4, contracts.QUERIES, generator=torch.Generator().manual_seed(5))
    chosen = keys.argsort(1)[:, : contracts.QUERIES // 2]
    fast = learner.adapt(batch.support, nn.functional.mse_loss).fast
    losses = []
    for i in range(4):
        own = {n.removeprefix("model."): t[i] for n, t in fast.items()}
        before = batch.query.x[i] @ own["body.weight"].T + own["body.bias"]
        spread = (before.var(0, correction=0) + model.norm.eps).sqrt()
        normal = (before - before.mean(0)) / spread * own["norm.weight"] + own["norm.bias"]
        said = sum(
            out.weights[i, j]
            * (
                torch.tanh(normal[chosen[i]]) @ fast["model.head.weight"][j].T
                + fast["model.head.bias"][j]
            )
            for j in range(4)
            if j != i
        )
        losses.append((said - batch.query.y[i][chosen[i]]).square().mean())
    close(out.relation_loss, torch.stack(losses).mean())


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_masked_samples_count_for_nothing(engine: str) -> None:
    whole = contracts.regression_batch()
    rows = [
        ((s[0][: 5 - i], s[1][: 5 - i]), (q[0][: 6 - i], q[1][: 6 - i]))
        for i, (s, q) in enumerate(contracts.tasks_of(whole))
    ]
    batch = tr.TaskBatch.from_tasks(rows)
    model = contracts.net()
    learner = contracts.learner("maml", model, engine)
    reg = regularizer(model, **HEAD)
    agree(
        reg(learner, batch), contracts.truth("maml", learner, reg, batch, heads_only=True), learner
    )


class Counted(contracts.Net):
    """Counts how often its body runs."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


def test_each_body_runs_once_for_the_queries() -> None:
    runs = {}
    for name, options in {"alone": {"lam": 0.0}, "whole": {}, "heads": HEAD}.items():
        model = Counted().double()
        learner = contracts.learner("maml", model, "loop")
        reg = regularizer(model, **options)
        reg(learner, contracts.regression_batch())
        model.runs = 0
        reg(learner, contracts.regression_batch(1))
        runs[name] = model.runs
    assert runs["heads"] == runs["alone"] < runs["whole"]


def test_a_learner_of_ones_own_needs_to_end_in_it() -> None:
    """Whatever its `predict` does before the head: here, it scales the inputs."""

    class Scaled(tr.MAML):
        def predict(self, state, fast, features):  # type: ignore[no-untyped-def]
            return super().predict(state, fast, 2 * features)

    class Late(tr.MAML):
        def predict(self, state, fast, features):  # type: ignore[no-untyped-def]
            return 2 * super().predict(state, fast, features)

    model, batch = contracts.net(), contracts.regression_batch()
    doubled = batch.replace(
        tr.Samples(2 * batch.support.x, batch.support.y),
        tr.Samples(2 * batch.query.x, batch.query.y),
    )
    reg = regularizer(model, **HEAD, normalize="quotient")
    reg.encoder = tr.UpdateEncoder(dim=contracts.HIDDEN)
    options = {"lr": 0.3, "steps": 2, "engine": "batched"}
    found = reg(Scaled(model, **options), batch)
    close(found.relation_loss, reg(tr.MAML(model, **options), doubled).relation_loss)
    with pytest.raises(
        ValueError, match="'head' must be the last thing .* is not what it returned"
    ):
        reg(Late(model, **options), batch)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("heap", "head must name a part of the model, got 'heap'; there are .'body', 'head'."),
        ("", "head must name a part"),
        ("body", "'body' must be the last thing the model does"),
    ],
)
def test_a_name_that_is_no_head_is_refused(head: str, reason: str) -> None:
    model = contracts.net()
    reg = regularizer(model, head=head)
    with pytest.raises(ValueError, match=reason):
        reg(contracts.learner("maml", model, "loop"), contracts.regression_batch())


def test_a_head_tied_to_the_body_is_refused() -> None:
    model = contracts.net(hidden=contracts.OUTPUTS, inputs=contracts.OUTPUTS)
    model.head.weight = model.body.weight
    x = torch.randn(3, 4, contracts.OUTPUTS, dtype=torch.float64)
    reg = tr.TRLearner(tr.UpdateEncoder(dim=8), head="head").double()
    with pytest.raises(ValueError, match=r"the head's \['weight'\] are shared with the body"):
        reg(tr.MAML(model), tr.TaskBatch(support=(x, x), query=(x, x)))


@pytest.mark.unchecked
def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="head must be the name of the model's last layer or None"):
        regularizer(contracts.net(), head=3)


def test_models_of_ones_own_loop_have_no_head() -> None:
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=8, features=1, targets=1), head="head")
    tasks, w = reg.collect(), torch.ones(1, requires_grad=True)
    for x in torch.rand(3, 5, 1):
        fast = w + x.mean()
        tasks.add(lambda x, fast=fast: fast * x, support=(x, x), query=(x, x))
    with pytest.raises(ValueError, match="models of your own loop are asked as a whole"):
        tasks.penalty()


def test_prototypes_have_no_head() -> None:
    model, batch = contracts.net(), contracts.class_batch()
    reg = regularizer(model, **HEAD, loss_fn=contracts.cross_entropy)
    with pytest.raises(ValueError, match="the head 'head' must be the last thing"):
        reg(tr.ProtoNet(model), batch)
