"""MetaSGD (Li et al. 2017, arXiv 1707.09835), with the per-layer, per-step variant of MAML++."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from trlearner.base.checks import check_flag
from trlearner.base.types import Fast, State
from trlearner.engines.task_learner import StepSize, at_step
from trlearner.learners.protocol import MODEL, GradientLearner
from trlearner.learners.rates import Rate, check_rates, rates_of
from trlearner.tasks.model_call import Call

RATES = "rates."


class MetaSGD(GradientLearner):
    """MAML whose inner rates are learned together with the initial parameters.

    The rates are parameters of the learner, ``rates.<parameter>`` with ``/`` for ``.``, so its
    `state_dict` saves them and its optimizer trains them.

    Args:
        model: Any `nn.Module`. Frozen parameters stay as they are.
        lr: Where the rates start; as for `MAML`.
        steps: Inner steps.
        first_order: Treat inner gradients as constants.
        per: ``"element"``, a rate for every number of every parameter (MetaSGD), or ``"layer"``, one
            for each parameter tensor (MAML++).
        per_step: Learn rates for each of the `steps` separately; steps beyond repeat the last.
        engine: As in `MAML`.
        recompute: As in `MAML`.
        adapts: As in `MAML`.
        call: As in `MAML`.
        output: As in `MAML`.

    Example:
        >>> learner = MetaSGD(nn.Linear(2, 1), lr=0.1, steps=3, per="layer", per_step=True)
        >>> {name: list(p.shape) for name, p in learner.rates.named_parameters()}
        {'weight': [3], 'bias': [3]}
    """

    def __init__(
        self,
        model: nn.Module,
        lr: Rate = 0.01,
        steps: int = 5,
        first_order: bool = False,
        per: Literal["element", "layer"] = "element",
        per_step: bool = False,
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
        if per not in ("element", "layer"):
            raise ValueError(f"per must be 'element' or 'layer', got {per!r}.")
        check_flag("per_step", per_step)
        check_rates(lr, self.adapting_names())
        self.per_step = per_step
        self.rates = nn.ParameterDict()
        parameters = dict(model.named_parameters())
        for name in (n.removeprefix(MODEL) for n in self.trainable()):
            shape = parameters[name].shape if per == "element" else ()
            start = rates_of(lr, [name], "")[name]
            starts = [float(at_step(start, s)) for s in range(max(steps, 1) if per_step else 1)]
            rows = torch.stack([parameters[name].new_full(shape, start) for start in starts])
            self.rates[name.replace(".", "/")] = nn.Parameter(rows if per_step else rows[0])

    def start(self, state: State) -> Fast:
        """Every parameter that is not frozen."""
        names = self.trainable()
        if missing := [n for n in names if _rate_name(n) not in state]:
            named = [n.removeprefix(MODEL) for n in missing]
            raise ValueError(
                f"MetaSGD has no learned rate for {named}, which were frozen or absent when the learner "
                "was built. Build MetaSGD(model) anew once the model has all its "
                "layers and nothing in it is to be unfrozen, and give the optimizer the new rates."
            )
        return {name: state[name] for name in names}

    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The learned rates."""
        found = {name: state[_rate_name(name)] for name in names}
        if not self.per_step:
            return found
        return {name: [rate[step] for step in range(len(rate))] for name, rate in found.items()}


def _rate_name(name: str) -> str:
    """The state's name of the rate that belongs to one of the model's parameters."""
    return RATES + name.removeprefix(MODEL).replace(".", "/")
