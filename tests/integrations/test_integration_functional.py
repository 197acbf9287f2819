"""A loop on torch.func with the relation term."""

import contracts
import pytest
import torch
from contracts import close
from integration import (
    ALLOWED,
    documented_loops_agree,
    example_runs,
    gradient_is_the_engines,
    growth,
    memory_is_flat,
    names,
    nothing_changes_without_the_term,
    rows,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import mse_loss
from trlearner.integrations import functional as integration
from trlearner.integrations.functional import adapted

import trlearner as tr
from regularizer.test_collect import LR, STEPS


def loop(model: nn.Module, batch: tr.TaskBatch, reg: tr.TRLearner | None) -> Tensor:
    (x, y, _), (xq, yq, _) = batch.support, batch.query

    def ask(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return mse_loss(functional_call(model, params, (x,)), y)

    def adapt(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        fast = dict(model.named_parameters())
        for _ in range(STEPS):
            gradient = grad(ask)(fast, x, y)
            fast = {name: p - LR * gradient[name] for name, p in fast.items()}
        return fast

    fast = vmap(adapt)(x, y)
    loss = vmap(ask)(fast, xq, yq).mean()
    if reg is None:
        return loss
    tasks = reg.collect()
    for i, one in enumerate(adapted(model, fast)):
        tasks.add(one, support=(x[i], y[i]), query=(xq[i], yq[i]))
    return loss + tasks.penalty()


def test_the_gradient_is_the_engines() -> None:
    gradient_is_the_engines(loop)


def test_nothing_changes_without_the_term() -> None:
    nothing_changes_without_the_term(loop)


def test_the_documented_loops_agree() -> None:
    x, y, xq, yq = (torch.stack(parts) for parts in zip(*rows(), strict=True))

    def found(net: nn.Module, reg: tr.TRLearner) -> dict:
        functions = {"functional_call": functional_call, "grad": grad, "vmap": vmap}
        more = {"x": x, "y": y, "xq": xq, "yq": yq, "adapted": adapted}
        space = names(net, reg, **functions, **more)
        exec(before_of_docstring(), space)  # the functions, which the loop after does not repeat
        for p in space["optimizer"].param_groups[0]["params"]:
            p.grad = None
        return space

    documented_loops_agree(integration, found)


def before_of_docstring() -> str:
    """The functions that the docstring's first loop defines."""
    assert integration.__doc__ is not None
    body = integration.__doc__.partition("::\n\n")[2].partition("    fast = vmap")[0]
    return "\n".join(line[4:] for line in body.splitlines())


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example_runs("functional", capsys)


@pytest.mark.slow
def test_memory_is_flat() -> None:
    memory_is_flat(loop)


@pytest.mark.slow
def test_a_graph_that_is_kept_would_be_noticed() -> None:
    assert growth(loop, keep=True) > 4 * ALLOWED


def test_parameters_that_are_missing_are_the_modules() -> None:
    model, x = contracts.net(), torch.randn(4, 2, dtype=torch.float64)
    heads = torch.stack([model.head.weight, 2 * model.head.weight])
    one, two = adapted(model, {"head.weight": heads})
    close(one(x), model(x), 1e-12)
    close(two(x) - model.head.bias, 2 * (model(x) - model.head.bias), 1e-12)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"arm.weight": (2, 3)}, r"params\['arm.weight'\] .* which it has not, got \[2, 3\]"),
        ({"head.bias": (3,)}, r"'head.bias' behind it, \['tasks', 3\], got \[3\]"),
        ({"head.bias": (2, 3), "body.bias": (4, 5)}, "of one number of tasks, got .*2.*4"),
        ({}, "of one number of tasks, got {}"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(params: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        adapted(contracts.net(), {name: torch.zeros(shape) for name, shape in params.items()})
