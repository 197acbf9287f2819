"""Engine ``higher``: every task's inner loop is run by the `higher` package, the field's reference.

``higher.innerloop_ctx`` patches a module whose parameters are what the learner adapts; its
differentiable SGD takes the steps. Learners without an inner gradient loop (ProtoNet) have nothing
for it to do and run as in ``loop``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base.types import Fast, LossFn, State
from trlearner.engines import loop
from trlearner.engines.one_task import check_depends
from trlearner.engines.second_order import explain_backward
from trlearner.engines.task_learner import GradientTaskLearner, TaskLearner, at_step
from trlearner.tasks.loss import task_loss
from trlearner.tasks.nested import Data
from trlearner.tasks.rows import Rows
from trlearner.tasks.samples import Samples


def adapt(
    learner: TaskLearner,
    state: State,
    features: Data,
    support: Samples,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    """Each task's adaptation in turn, by `higher`: each entry ``[tasks, ...]``."""
    if not isinstance(learner, GradientTaskLearner):
        return loop.adapt(learner, state, features, support, loss_fn, steps)
    return Rows(
        _adapt_task(learner, state, h, y, loss_fn, steps)
        for h, y in loop.real_samples(features, support)
    )


class _Moved(nn.Module):
    """What one task adapts, as the parameters of a module for `higher` to patch."""

    def __init__(self, start: Fast, predict: Callable[[Fast, Any], Any]) -> None:
        super().__init__()
        self.predict = predict
        self.names = {name: f"moved_{i}" for i, name in enumerate(start)}
        for name, attribute in self.names.items():
            self.register_parameter(attribute, nn.Parameter(start[name].detach()))

    def forward(self, features: Data) -> Any:
        return self.predict({n: getattr(self, a) for n, a in self.names.items()}, features)


def _adapt_task(
    learner: GradientTaskLearner,
    state: State,
    features: Data,
    y: Data,
    loss_fn: LossFn,
    steps: int,
) -> Fast:
    start = learner.start(state)
    graph = torch.is_grad_enabled()
    module = _Moved(start, lambda fast, h: learner.predict(state, fast, h))
    # One group a parameter, for each may have a rate of its own; the number is always overridden.
    optimizer = torch.optim.SGD([{"params": [p]} for p in module.parameters()], lr=1.0)
    with (
        torch.enable_grad(),
        _import_higher().innerloop_ctx(
            module, optimizer, copy_initial_weights=False, track_higher_grads=graph
        ) as (model, diffopt),
    ):
        model.update_params(
            [t if t.requires_grad else t.detach().requires_grad_() for t in start.values()]
        )
        sizes = learner.step_sizes(state, list(start))
        for step in range(steps):
            value = task_loss(loss_fn, model(features), y)
            check_depends(value, start)
            diffopt.step(
                value,
                override={"lr": [at_step(sizes[name], step) for name in start]},
                grad_callback=_detach if learner.first_order else None,
            )
        moved = list(model.parameters())
    if graph:
        explain_backward(learner, ("higher", features.dtype, features.device.type), moved)
    return dict(zip(start, moved, strict=True))


def _detach(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    # track_higher_grads=False would cut the way back to the initial parameters as well.
    return [None if g is None else g.detach() for g in gradients]


def _import_higher() -> Any:
    with warnings.catch_warnings():
        # Its sources hold an invalid escape sequence, of which Python warns when compiling them.
        warnings.simplefilter("ignore")
        import higher
    return higher


ENGINE = replace(loop.ENGINE, name="higher", adapt=adapt)
