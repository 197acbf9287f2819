"""MAML and FOMAML (Finn et al. 2017, arXiv 1703.03400)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from trlearner.base.types import Fast, State
from trlearner.engines.task_learner import StepSize
from trlearner.learners.protocol import MODEL, GradientLearner
from trlearner.learners.rates import Rate, check_rates, rates_of
from trlearner.tasks.model_call import Call


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
        adapts: The parameters that adapt: a name or a beginning of names (``"head"``), a pattern with ``*``
            (``"*lora*"``), or several of these. By default all that are not frozen. The others are learned
            by the meta-gradient only.
        call: ``(model, x) -> output``, how the model is called. By default a dict of inputs is passed by
            name, a tuple or list one by one, a tensor alone.
        output: The part of the model's output that holds the predictions, e.g. ``"logits"``; by default all
            of it, a tensor, or dicts, tuples and lists of tensors.

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
        adapts: str | Sequence[str] | None = None,
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(
            model,
            steps=steps,
            first_order=first_order,
            engine=engine,
            recompute=recompute,
            adapts=adapts,
            call=call,
            output=output,
        )
        check_rates(lr, self.adapting_names())
        self.lr = lr

    def start(self, state: State) -> Fast:
        """Every parameter that is not frozen."""
        return {name: state[name] for name in self.trainable()}

    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The configured rates."""
        return rates_of(self.lr, names, MODEL)
