"""What a task's weight in a meta-step does to the loss on held-out tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from trlearner.base.checks import check_choice, check_loss_fn, check_number, check_tensor
from trlearner.base.types import LossFn, State
from trlearner.engines.adapted import Engine, adapt
from trlearner.engines.choose import ENGINES
from trlearner.engines.task_learner import TaskLearner
from trlearner.learners.protocol import Learner, check_learner
from trlearner.tasks.batch import TaskBatch, check_batch

Direction = Mapping[str, Tensor]


def task_losses(
    engine: Engine,
    learner: TaskLearner,
    state: State,
    batch: TaskBatch,
    loss_fn: LossFn,
    steps: int,
) -> Float[Tensor, " tasks"]:
    """Each task's loss on its queries after adaptation, L_i(state).

    Args:
        engine: Runs the tasks.
        learner: Adapts.
        state: Its parameters and buffers.
        batch: The tasks.
        loss_fn: For one task.
        steps: Inner steps.
    """
    models = adapt(engine, learner, state, batch.support, loss_fn, steps)
    predictions = models.predict(models.embed(batch.query))
    return models.losses(loss_fn, predictions, batch.query)


def products(
    losses_of: Callable[[State], Tensor], state: State, direction: Direction
) -> tuple[Float[Tensor, " tasks"], Float[Tensor, " tasks"]]:
    """L_i and ``<direction, grad L_i>`` of all tasks at once: one Jacobian-vector product.

    It is taken by the double-backward trick: ``g(u) = grad sum_i u_i L_i`` is linear in u, and the
    derivative of ``<direction, g(u)>`` by u is what is wanted. Forward mode gives the same where it works,
    but `torch.func.jvp` cannot enter an inner loop that uses autograd, dual numbers took up to twice as long
    on small networks, and not every layer's forward mode can be differentiated again.

    Args:
        losses_of: From a state to ``[tasks]`` losses.
        state: Where.
        direction: By the state's names; names that it lacks count as zero.

    Example:
        >>> losses, found = products(
        ...     lambda s: s["w"] ** torch.tensor([1.0, 2.0]),
        ...     {"w": torch.tensor(3.0)},
        ...     {"w": torch.tensor(1.0)},
        ... )
        >>> losses, found
        (tensor([3., 9.]), tensor([1., 6.]))
    """
    with torch.enable_grad():
        here = {n: t.detach().requires_grad_() if n in direction else t for n, t in state.items()}
        losses = losses_of(here)
        u = torch.ones_like(losses, requires_grad=True)
        gradients = torch.autograd.grad(
            losses, [here[n] for n in direction], u, create_graph=True, allow_unused=True
        )
        pairs = zip(gradients, direction.values(), strict=True)
        along = [(g * v).sum() for g, v in pairs if g is not None and g.requires_grad]
        if not along:
            return losses.detach(), torch.zeros_like(losses)
        (found,) = torch.autograd.grad(torch.stack(along).sum(), u)
    return losses.detach(), found


def product(
    loss_of: Callable[[State], Tensor], state: State, direction: Direction
) -> Float[Tensor, ""]:
    """``<direction, grad L>`` of a single task's loss, by its gradient.

    Args:
        loss_of: From a state to ``[1]`` loss.
        state: Where.
        direction: As in `products`.
    """
    with torch.enable_grad():
        here = {n: t.detach().requires_grad_() if n in direction else t for n, t in state.items()}
        loss = loss_of(here)
        wanted = [here[n] for n in direction]
        gradients = torch.autograd.grad(loss.sum(), wanted, allow_unused=True)
    pairs = zip(gradients, direction.values(), strict=True)
    along = [(g * v).sum() for g, v in pairs if g is not None]
    return torch.stack(along).sum() if along else loss.new_zeros(())


def mean_gradient(
    losses_of: Callable[[State], Tensor], state: State, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """The gradient of ``sum_i w_i L_i``, by default of the mean, by the names that are trained.

    Args:
        losses_of: From a state to ``[tasks]`` losses.
        state: Its entries that require a gradient are trained.
        weights: ``[tasks]``.
    """
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
    runner = engine if isinstance(engine, Engine) else _named(engine)
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
        return lambda at: task_losses(runner, learner, at, tasks, loss_fn, learner.steps)

    step = mean_gradient(losses_of(batch), state, weights)
    moved = {n: t - lr * step[n] if n in step else t for n, t in state.items()}
    after = {n: t.detach().requires_grad_(n in step) for n, t in moved.items()}
    direction = mean_gradient(losses_of(held_out), after)
    return -lr * products(losses_of(batch), state, direction)[1]


def _named(engine: str) -> Engine:
    check_choice("engine", engine, ("loop", "batched", "channels_last"))
    return ENGINES[engine]
