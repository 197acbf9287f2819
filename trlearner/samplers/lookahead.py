"""What a task's weight in a meta-step does to the loss on held-out tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from trlearner.base.checks import check_choice, check_loss_fn, check_number, check_tensor
from trlearner.base.functional import random_state_kept
from trlearner.base.types import LossFn, State
from trlearner.engines.adapted import Engine, adapt
from trlearner.engines.blame import blaming
from trlearner.engines.choose import ENGINES, without_graph
from trlearner.learners.protocol import Learner, check_learner
from trlearner.tasks.batch import TaskBatch, check_batch


@contextmanager
def looking(
    learner: Learner, batch: TaskBatch, loss_fn: LossFn | None
) -> Iterator[tuple[Engine, LossFn]]:
    """An engine that autograd follows, and the loss: by default squares, or cross-entropy for labels.

    What is drawn inside leaves no trace in the random state.
    """
    if loss_fn is None:
        loss_fn = cross_entropy if batch.query.labelled else mse_loss
    engine = learner.engine_for(batch.support, loss_fn, batch.query)
    engine = ENGINES["loop"] if engine.name == "higher" else without_graph(engine)
    parts = {"batch.support": batch.support}
    with blaming(learner, loss_fn, parts), random_state_kept(batch.query.x):
        yield engine, loss_fn


def task_losses(
    engine: Engine, learner: Learner, state: State, batch: TaskBatch, loss_fn: LossFn
) -> Float[Tensor, " tasks"]:
    """Each task's loss on its queries after adaptation, L_i(state)."""
    models = adapt(engine, learner, state, batch.support, loss_fn, learner.steps)
    predictions = models.predict(models.embed(batch.query))
    return models.losses(loss_fn, predictions, batch.query)


def products(
    losses_of: Callable[[State], Tensor],
    state: State,
    direction: Mapping[str, Tensor],
    together: bool = True,
) -> Float[Tensor, " tasks"]:
    """``<direction, grad L_i>`` of all tasks, where `losses_of` maps a state to the losses L_i.

    Where tasks run `together`, it is the derivative by u of ``<direction, g(u)>``, with the gradient
    ``g(u) = grad sum_i u_i L_i``. (`torch.func.jvp` cannot enter an inner loop that uses autograd.) Otherwise
    every task has a graph of its own, whose gradient costs no more than a step.

    Example:
        >>> state = {"w": torch.tensor(3.0)}
        >>> products(lambda s: s["w"] ** torch.tensor([1.0, 2.0]), state, {"w": torch.tensor(1.0)})
        tensor([1., 6.])
    """

    def along(gradients: Iterable[Tensor | None]) -> Tensor:
        pairs = zip(gradients, direction.values(), strict=True)
        used = [(g * v).sum() for g, v in pairs if g is not None]
        return torch.stack(used).sum() if used else losses.new_zeros(())

    with torch.enable_grad():
        here = {n: t.detach().requires_grad_() if n in direction else t for n, t in state.items()}
        losses, wanted = losses_of(here), [here[n] for n in direction]
        grad = torch.autograd.grad
        if not together:
            each = (grad(loss, wanted, retain_graph=True, allow_unused=True) for loss in losses)
            return torch.stack([along(gradients) for gradients in each])
        u = torch.ones_like(losses, requires_grad=True)
        whole = along(grad(losses, wanted, u, create_graph=True, allow_unused=True))
        return grad(whole, u)[0] if whole.requires_grad else torch.zeros_like(losses)


def mean_gradient(
    losses_of: Callable[[State], Tensor], state: State, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """The gradient of ``sum_i w_i L_i``, by default of the mean, by the names of what requires one."""
    trained = {n: t.detach().requires_grad_() for n, t in state.items() if t.requires_grad}
    with torch.enable_grad():
        losses = losses_of({**state, **trained})
        loss = losses.mean() if weights is None else (weights * losses).sum()
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    pairs = zip(trained.items(), found, strict=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in pairs}


def lookahead(
    engine: Engine | str,
    learner: Learner,
    batch: TaskBatch,
    held_out: TaskBatch,
    weights: Float[Tensor, " tasks"],
    loss_fn: LossFn,
    lr: float,
) -> Float[Tensor, " tasks"]:
    """The derivative of the held-out loss after one meta-step by the weights that it gave to tasks.

    theta' = theta - lr sum_i w_i grad L_i(theta),
    dL_val(theta') / dw_i = -lr <grad L_val(theta'), grad L_i(theta)>

    (arXiv 2307.08924; the gradient on the left is taken at theta', not at theta).

    Args:
        engine: Runs the tasks; or its name: "loop", "batched" or "channels_last".
        learner: Adapts; its parameters stay as they are.
        batch: The tasks that the step trains on.
        held_out: The tasks that it is judged by.
        weights: w, of the first.
        loss_fn: For one task.
        lr: Of the step, plain gradient descent.

    Example:
        >>> import trlearner as tr
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(4, 5, 1)
        >>> batch = tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x))
        >>> learner = tr.MAML(torch.nn.Linear(1, 1), lr=0.1, steps=1)
        >>> mse = torch.nn.functional.mse_loss
        >>> w = torch.full((3,), 1 / 3)
        >>> gain = lookahead("batched", learner, batch[:3], batch[3:], w, mse, lr=0.1)
        >>> gain.shape, bool((gain < 0).all())
        (torch.Size([3]), True)
    """
    if not isinstance(engine, Engine):
        check_choice("engine", engine, ("loop", "batched", "channels_last"))
    runner = engine if isinstance(engine, Engine) else ENGINES[engine]
    check_learner(learner)
    check_batch(batch)
    check_batch(held_out, "held_out")
    check_tensor("weights", weights, "tasks")
    if len(weights) != len(batch):
        raise ValueError(
            f"weights must be one number a task, [{len(batch)}], got {list(weights.shape)}."
        )
    check_loss_fn(loss_fn)
    check_number("lr", lr, above=0)
    with torch.enable_grad():
        state = learner.state()

    def losses_of(tasks: TaskBatch) -> Callable[[State], Tensor]:
        return lambda at: task_losses(runner, learner, at, tasks, loss_fn)

    step = mean_gradient(losses_of(batch), state, weights)
    moved = {n: t - lr * step[n] if n in step else t for n, t in state.items()}
    after = {n: t.detach().requires_grad_(n in step) for n, t in moved.items()}
    direction = mean_gradient(losses_of(held_out), after)
    return -lr * products(losses_of(batch), state, direction, runner.together)
