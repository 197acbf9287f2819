"""Other ways to the same result, each compared with a plain step on engine `loop`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import reference
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import trlearner as tr
from fuzz.compare import GRADIENT, Values, gradients, outputs, step
from fuzz.draw_case import Problem
from trlearner.regularizer.meta_step import looks
from trlearner.tasks.nested import as_data, flat, raw

Variant = Callable[[Problem, str], Values | None]
"""What a problem yields on an engine by another way; ``None`` where there is none."""


def chunked(problem: Problem, engine: str) -> Values:
    """In chunks, where the case has none, and the reverse."""
    reg = problem.regularizer
    before = reg.options
    reg.options = replace(before, chunk_size=1 if before.chunk_size is None else None)
    try:
        return step(problem, engine)
    finally:
        reg.options = before


def recomputed(problem: Problem, engine: str) -> Values | None:
    """With inner steps that are computed again in the backward pass."""
    learner = problem.learner
    if not isinstance(learner, tr.GradientLearner) or engine == "higher":
        return None
    learner.recompute = True
    try:
        return step(problem, engine)
    finally:
        learner.recompute = False


def permuted(problem: Problem, engine: str) -> Values | None:
    """Of the tasks in another order, put back."""
    case, batch = problem.case, problem.batch
    if case.regularizer["queries"] < 1:
        return None  # which queries are drawn goes by a task's place
    g = torch.Generator().manual_seed(case.number)
    order = torch.randperm(case.tasks, generator=g)
    values = step(replace(problem, batch=batch[order]), engine)
    back = order.argsort()
    sizes = batch[order].query.is_real().sum(1).tolist()
    values["predictions"] = torch.cat([values["predictions"].split(sizes)[i] for i in back])
    for name in {"relations", "weights", "embeddings"} & values.keys():
        values[name] = values[name][back]
    for name in {"relations", "weights"} & values.keys():
        values[name] = values[name][:, back]
    return values


def without_gradient(problem: Problem, engine: str) -> Values:
    """Outputs of a step that keeps no graph."""
    mode = torch.no_grad if problem.case.number % 2 else torch.inference_mode
    learner, reg = problem.learner, problem.regularizer
    learner.engine = engine
    reg.generator.manual_seed(problem.case.number)
    with mode():
        out = reg(learner, problem.batch)
        assert not out.loss.requires_grad
        return outputs(out, problem.batch)


def related(problem: Problem, engine: str) -> Values | None:
    """Relations by `TRLearner.relate`, predictions by `Learner.adapt`."""
    learner, reg, batch = problem.learner, problem.regularizer, problem.batch
    learner.engine = engine
    adapted = learner.adapt(batch.support, reg.loss_fn)
    answers = flat(as_data(adapted(batch.query)), 2)
    values = {"predictions": answers[batch.query.is_real()].detach()}
    if reg.lam:
        values["relations"] = reg.relate(learner, batch)
    return values


def collected(problem: Problem, engine: str) -> Values | None:
    """By `TRLearner.collect` around an inner loop that is written without the library."""
    case = problem.case
    foreign = case.learner == "tnet" or case.regularizer["head"]
    if engine != "loop" or foreign:
        return None  # a loop of the user's own has no such thing
    reg, batch, losses, answers = problem.regularizer, problem.batch, [], []
    reg.generator.manual_seed(case.number)
    together = bool(case.number % 2) and not _couples(problem)
    start = {n: p for n, p in problem.learner.model.named_parameters() if adapts(problem, n, p)}
    tasks = reg.collect(together=together, ways=case.ways, start=start)
    for i in range(case.tasks):
        support, query = (tuple(map(raw, s.real(i))) for s in (batch.support, batch.query))
        predict, fast = adapted_by_hand(problem, *support)
        tasks.add(predict, support=support, query=query, fast=fast)
        said = predict(query[0])
        answers.append(flat(as_data(said), 1))
        losses.append(reg.loss_fn(said, query[1]))
    own = torch.stack(losses).mean()
    loss = own + tasks.penalty()
    related = torch.zeros_like(own) if tasks.term is None else tasks.term.loss
    values = {"loss": loss, "task_loss": own, "relation_loss": related}
    values["predictions"] = torch.cat(answers)
    if tasks.term is not None:
        values |= {name: t for name, t in looks(tasks.term).items() if t is not None}
    return {n: t.detach() for n, t in values.items()} | gradients(loss, problem)


def adapted_by_hand(
    problem: Problem, x: Any, y: Any
) -> tuple[Callable[[Any], Any], dict[str, Tensor] | None]:
    """One task's adapted model and parameters, by the formulas of `reference`."""
    learner, loss_fn = problem.learner, problem.regularizer.loss_fn
    model = learner.model

    def run(params: dict[str, Tensor], inputs: Any) -> Any:
        given = {name: b.clone() for name, b in model.named_buffers()}  # which a forward updates
        given |= {place: params[name] for place, name in places.items()}
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
        args = args if isinstance(args, tuple) else (args,)
        return functional_call(model, given, args, kwargs, tie_weights=False)

    # Where torch resolves ties, it restores a module that has two names wrongly.
    params = dict(model.named_parameters())
    names_of = {id(p): name for name, p in params.items()}
    places = {
        f"{path}.{name}".lstrip("."): names_of[id(p)]
        for path, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
    }
    if isinstance(learner, tr.ProtoNet):
        ways = problem.case.ways
        return by_distance(lambda inputs: run(params, inputs).flatten(1), x, y, ways), None
    if isinstance(learner, tr.BayesHead):
        return by_posterior(lambda inputs: run(params, inputs).flatten(1), x, y, learner), None
    names = [name for name, p in params.items() if adapts(problem, name, p)]
    adapted = reference.adapt(
        run, params, names, x, y, loss_fn, rates(problem), learner.steps, learner.first_order
    )
    return lambda inputs: run(adapted, inputs), {name: adapted[name] for name in names}


def adapts(problem: Problem, name: str, parameter: nn.Parameter) -> bool:
    """Whether the inner loop moves a parameter of the model."""
    everywhere = not isinstance(problem.learner, tr.ANIL)
    return parameter.requires_grad and (everywhere or name.startswith("head."))


def by_distance(
    g: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, ways: int
) -> Callable[[Tensor], Tensor]:
    """Logits -|g(x) - p_c|^2 of the class means p_c; -10,000 for a class that the support lacks."""
    features = g(x)

    def logits(inputs: Tensor) -> Tensor:
        h = g(inputs)
        columns = [
            -(h - features[y == c].mean(0)).square().sum(1)
            if c in y
            else h.new_full(h.shape[:1], -1e4)
            for c in range(ways)
        ]
        return torch.stack(columns, 1)

    return logits


def by_posterior(
    g: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, learner: tr.BayesHead
) -> Callable[[Tensor], Tensor]:
    """The posterior mean's predictions; of classes, those of one-hot labels times a scale."""
    prior, scale = getattr(learner, "prior_mean", None), 1.0
    if learner.ways is not None:
        y = F.one_hot(y, learner.ways).double()
        prior, scale = y.new_zeros(learner.dim + 1, learner.ways), learner.log_scale.exp()
    noise = learner.log_noise.exp()
    weights = reference.bayes_weights(g(x), y, prior, learner.prior_factor, noise)
    return lambda inputs: reference.affine(g(inputs), weights) * scale


def rates(problem: Problem) -> reference.Rate:
    """The inner rate of a parameter at a step, from the case or from learned rates."""
    learner, options = problem.learner, problem.case.options
    if isinstance(learner, tr.MetaSGD):
        learned = dict(learner.rates.named_parameters())

        def rate(name: str, step: int) -> Tensor:
            found = learned[name.replace(".", "/")]
            return found[min(step, len(found) - 1)] if options["per_step"] else found

        return rate

    def given(name: str, step: int) -> float:
        lr = options["lr"]
        if isinstance(lr, dict):
            below = name.removeprefix("head.") if isinstance(learner, tr.ANIL) else name
            (key,) = (key for key in lr if key)  # the other is the default
            lr = lr[key] if below.startswith(key) else lr[""]
        return lr[min(step, len(lr) - 1)] if isinstance(lr, list) else lr

    return given


def _couples(problem: Problem) -> bool:
    return problem.learner.couples_samples()


VARIANTS: dict[str, Variant] = {
    "chunk_size": chunked,
    "recompute": recomputed,
    "permuted tasks": permuted,
    "no gradient": without_gradient,
    "adapt, relate": related,
    "collect": collected,
}


def part(expected: Values, found: Values) -> Values:
    """What a run should have yielded: all, without gradients only outputs, or what it is about."""
    if any(name.startswith(GRADIENT) for name in found):
        return expected
    if "loss" in found:
        return {name: t for name, t in expected.items() if not name.startswith(GRADIENT)}
    return {name: t for name, t in expected.items() if name in found}
