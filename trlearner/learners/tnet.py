"""T-Net (Lee & Choi 2018, arXiv 1801.05558): learned transformations that adaptation leaves fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from trlearner.base.types import Fast, State
from trlearner.engines.task_learner import StepSize
from trlearner.learners.protocol import MODEL, GradientLearner
from trlearner.learners.rates import Rate, check_rates, rates_of
from trlearner.tasks.model_call import Call

TRANSFORMS = "transforms."


class TNet(GradientLearner):
    """MAML with a learned linear map behind every linear and convolution layer.

    A layer ``W x + b`` becomes ``T (W x + b)``. The inner loop moves ``W`` and ``b``; ``T`` belongs to
    the learner, starts as the identity and is learned by the meta-gradient only. Since
    ``T (W x + b) = (T W) x + T b``, the model runs unchanged with the products as its parameters.
    Behind a grouped convolution ``T`` mixes the channels of each group; a weight shared by several
    layers has one ``T``. Transposed convolutions have none.

    Args:
        model: Any `nn.Module`; its `state_dict` stays as it is.
        lr: The inner rate; as for `MAML`.
        steps: Inner steps.
        first_order: Treat inner gradients as constants.
        engine: As in `MAML`.
        recompute: As in `MAML`.
        call: As in `MAML`.
        output: As in `MAML`.

    Raises:
        ValueError: The model has no layer to transform, or one whose weight is computed.

    Example:
        >>> learner = TNet(nn.Sequential(nn.Linear(3, 2)), lr=0.1, steps=1)
        >>> {name: list(p.shape) for name, p in learner.transforms.named_parameters()}
        {'0': [1, 2, 2]}
    """

    def __init__(
        self,
        model: nn.Module,
        lr: Rate = 0.01,
        steps: int = 5,
        first_order: bool = False,
        engine: str = "auto",
        recompute: bool = False,
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(
            model,
            steps=steps,
            first_order=first_order,
            engine=engine,
            recompute=recompute,
            call=call,
            output=output,
        )
        check_rates(lr, [name for name, _ in model.named_parameters()])
        self.lr = lr
        self.transforms = nn.ParameterDict()
        own = {id(p): name for name, p in model.named_parameters()}
        # The state's names of each transformed layer's weight and bias.
        self._layers: dict[str, list[str]] = {}
        seen: set[int] = set()
        for path, layer in model.named_modules():
            if not _transformable(layer):
                continue
            _check_owned(path, layer, own)
            if id(layer.weight) in seen:
                continue
            seen.add(id(layer.weight))
            if layer.bias is not None and id(layer.bias) in seen:
                raise ValueError(
                    f"TNet cannot transform {path!r}, whose bias another layer shares while its weight is "
                    "its own: the bias would be transformed twice. Give the layer a bias of its own."
                )
            seen.add(id(layer.bias))
            key = path.replace(".", "/") or "model"
            self.transforms[key] = nn.Parameter(_identity(layer))
            self._layers[key] = [own[id(p)] for p in (layer.weight, layer.bias) if p is not None]
        if not self._layers:
            raise ValueError(
                "TNet found no nn.Linear and no nn.Conv1d, 2d or 3d layer in the model, so there is "
                "nothing to transform. Use MAML."
            )

    def start(self, state: State) -> Fast:
        """Every parameter of the model that is not frozen, but no transformation."""
        return {name: state[name] for name in self.trainable()}

    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The configured rates."""
        return rates_of(self.lr, names, MODEL)

    def model_state(self, state: State) -> State:
        """The model's parameters with the transformations multiplied into them."""
        model = dict(super().model_state(state))
        for key, names in self._layers.items():
            transform = state[TRANSFORMS + key]
            for name in names:
                model[name] = _transformed(transform, model[name])
        return model


def _transformable(layer: nn.Module) -> TypeGuard[nn.Linear | _ConvNd]:
    return isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and not layer.transposed)


def _check_owned(path: str, layer: nn.Linear | _ConvNd, own: Mapping[int, str]) -> None:
    """Refuse a weight or bias that the layer computes anew in each forward, or keeps in a buffer."""
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        if value is not None and id(value) not in own:
            raise ValueError(
                f"TNet cannot transform {path or 'model'!r}: its {name} is no parameter, but is computed "
                "from others (weight_norm, spectral_norm, pruning) or kept in a buffer. Make it a parameter "
                "(torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), "
                "torch.nn.utils.remove_weight_norm(layer)) or use MAML."
            )


def _identity(layer: nn.Linear | _ConvNd) -> Tensor:
    """``[groups, outputs/groups, outputs/groups]``, one identity for each group of channels."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    weight = layer.weight
    eye = torch.eye(len(weight) // groups, dtype=weight.dtype, device=weight.device)
    return eye.repeat(groups, 1, 1)


def _transformed(transform: Tensor, parameter: Tensor) -> Tensor:
    """``T W`` or ``T b``; the first axis of either is the layer's outputs."""
    groups, outputs, _ = transform.shape
    return (transform @ parameter.reshape(groups, outputs, -1)).reshape(parameter.shape)
