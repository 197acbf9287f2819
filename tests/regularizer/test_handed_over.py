"""Models of a loop that all read the last round's variables, and those that only look like it."""

import functools
from collections.abc import Callable

import contracts
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from trlearner.engines.handed_over import bindings, rebound, same
from trlearner.regularizer.collect import Collected

NET = contracts.net()
TASKS = contracts.tasks_of(contracts.regression_batch(tasks=3, support=2))
Model = Callable[[Tensor], Tensor]


def adapted(support: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    x, y = support
    params = dict(NET.named_parameters())
    loss = mse_loss(torch.func.functional_call(NET, params, (x,)), y)
    gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    return {n: p - 0.3 * g for (n, p), g in zip(params.items(), gradients, strict=True)}


def run(fast: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(NET, fast, (x,))


def collected() -> Collected:
    return tr.TRLearner(tr.LabelledEncoder(None, dim=4), lam=0.5).double().collect()


def test_a_lambda_that_reads_the_loop_s_variable_is_refused() -> None:
    tasks = collected()

    def loop() -> None:
        for support, query in TASKS:
            fast = adapted(support)
            tasks.add(lambda x: run(fast, x), support=support, query=query)  # noqa: B023

    with pytest.raises(ValueError, match="predict is the very model .* lambda x, fast=fast:"):
        loop()
    assert len(tasks) == 1


def test_at_module_level_it_is_a_global() -> None:
    script = """
for support, query in TASKS:
    fast = adapted(support)
    tasks.add(lambda x: run(fast, x), support=support, query=query)
"""
    with pytest.raises(ValueError, match="predict is the very model of a task"):
        exec(script, {"TASKS": TASKS, "adapted": adapted, "run": run, "tasks": collected()})


def test_a_decorated_function_that_returns_one_module_is_refused() -> None:
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4), lam=0.5).double()

    @reg.regularize
    def adapt(support: tuple[Tensor, Tensor]) -> Model:
        return lambda x: NET(x)

    with pytest.raises(ValueError, match="predict is the very model of a task"):
        adapt(contracts.regression_batch(tasks=3))


@pytest.mark.parametrize("method", ["forward", "__call__"])
def test_bound_methods_of_one_object_are_one_model(method: str) -> None:
    tasks = collected()
    (support, query), other, _ = TASKS
    tasks.add(getattr(NET, method), support=support, query=query)
    with pytest.raises(ValueError, match="predict is the very model of a task"):
        tasks.add(getattr(NET, method), support=other[0], query=other[1])


def test_a_variable_that_is_set_anew_before_the_penalty_is_told() -> None:
    """The functions differ, but what they read does not."""
    tasks = collected()
    for i, (support, query) in enumerate(TASKS):
        fast = adapted(support)
        tasks.add(lambda x, i=i: run(fast, x) * (1 + i), support=support, query=query)  # noqa: B023
    with pytest.warns(UserWarning, match="the model of task 0 reads fast, which was set anew"):
        tasks.penalty()


class Object:
    def __init__(self, fast: dict[str, Tensor]) -> None:
        self.fast = fast

    def __call__(self, x: Tensor) -> Tensor:
        return run(self.fast, x)


def factory(fast: dict[str, Tensor]) -> Model:
    return lambda x: run(fast, x)


def fresh(fast: dict[str, Tensor]) -> Model:
    module = nn.Linear(contracts.INPUTS, contracts.OUTPUTS).double()
    return lambda x: module(x) + 0 * run(fast, x)


WAYS: dict[str, Callable[[dict[str, Tensor]], Model]] = {
    "default": lambda fast: lambda x, fast=fast: run(fast, x),
    "keyword": lambda fast: lambda x, *, fast=fast: run(fast, x),
    "partial": lambda fast: functools.partial(run, fast),
    "partial by keyword": lambda fast: functools.partial(lambda x, fast: run(fast, x), fast=fast),
    "object": Object,
    "method": lambda fast: Object(fast).__call__,
    "factory": factory,
    "module": fresh,
}


@pytest.mark.parametrize("way", WAYS)
def test_models_of_their_own_pass(way: str) -> None:
    tasks = collected()
    for support, query in TASKS:
        tasks.add(WAYS[way](adapted(support)), support=support, query=query)
    assert tasks.penalty() > 0


def test_a_closure_over_a_list_with_its_own_index_passes() -> None:
    tasks, models = collected(), []
    for i, (support, query) in enumerate(TASKS):
        models.append(adapted(support))
        tasks.add(lambda x, i=i: run(models[i], x), support=support, query=query)
    assert tasks.penalty() > 0


def test_a_counter_may_be_set_anew() -> None:
    tasks, calls = collected(), 0
    for support, query in TASKS:

        def model(x: Tensor, fast: dict[str, Tensor] = adapted(support)) -> Tensor:  # noqa: B008
            nonlocal calls
            calls += 1
            return run(fast, x)

        tasks.add(model, support=support, query=query)
    assert tasks.penalty() > 0
    assert calls > 0


def test_tasks_of_add_task_share_their_functions() -> None:
    tasks = collected()
    for support, query in TASKS:
        tasks.add_task(adapted, run, support=support, query=query)
    assert tasks.backward() > 0


def test_what_is_the_same() -> None:
    first, second = object(), object()
    assert same(functools.partial(print, first), functools.partial(print, first))
    assert not same(functools.partial(print, first), functools.partial(print, second))
    assert not same(functools.partial(print, end=first), functools.partial(print, file=first))
    assert not same(print, len)
    read = [lambda: first for _ in range(2)]
    assert bindings(read[0]) == {"first": first}
    before = bindings(read[0])
    first = second
    assert rebound(read[0], before) == ["first"]
    assert rebound(print, bindings(print)) == []
