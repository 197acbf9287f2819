"""MAML and FOMAML (Finn et al. 2017, arXiv 1703.03400)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from trlearner.base.types import Fast, State
from trlearner.engines.task_learner import StepSize
from trlearner.learners.protocol import MODEL, GradientLearner
from trlearner.learners.rates import Rate, check_rates, rates_of


class MAML(GradientLearner):
    """Every parameter of the model adapts by gradient descent at a fixed rate.

    Args:
        model: Any `nn.Module`. Frozen parameters stay as they are.
        lr: The inner rate: a number; one number a step; or a mapping from (beginnings of)
            parameter names to either, in which the longest match counts. Steps beyond the last
            number repeat it.
        steps: Inner steps.
        first_order: Treat inner gradients as constants (FOMAML).
        engine: ``"auto"``, ``"tune"``, ``"higher"``, ``"loop"``, ``"channels_last"``, ``"batched"`` or
            ``"compiled"``.
        recompute: Compute each inner step again in the backward pass, in place of keeping its
            activations: less memory, more time, the same gradient. It has no effect where no graph is
            kept (``first_order``, ``torch.no_grad()``).

    Example:
        >>> MAML(nn.Linear(1, 1), lr={"": [0.1, 0.05], "bias": 0.01}, steps=2).steps
        2
    """

    def __init__(
        self,
        model: nn.Module,
        lr: Rate = 0.01,
        steps: int = 5,
        first_order: bool = False,
        engine: str = "auto",
        recompute: bool = False,
    ) -> None:
        super().__init__(
            model, steps=steps, first_order=first_order, engine=engine, recompute=recompute
        )
        check_rates(lr, [name for name, _ in model.named_parameters()])
        self.lr = lr

    def start(self, state: State) -> Fast:
        """Every parameter that is not frozen."""
        return {name: state[name] for name in self.trainable()}

    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The configured rates."""
        return rates_of(self.lr, names, MODEL)
