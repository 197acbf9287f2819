"""Recurrent and attention layers that take the samples' axis for time.

``nn.LSTM`` reads ``[time, samples, features]`` unless it is built with ``batch_first=True``, and any
``[rows, features]`` as one sequence. No attribute tells whether a model feeds its samples into that axis,
so one forward pass shows it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base import functional
from trlearner.base.types import LossFn
from trlearner.base.warn import warn
from trlearner.engines.head import HasModel
from trlearner.engines.one_task import adapt_task
from trlearner.tasks.nested import Data, joined, packed
from trlearner.tasks.samples import Samples


def examine_learner(learner: HasModel, samples: Samples, loss_fn: LossFn) -> None:
    """As `examine`, of a learner's predictions before adaptation.

    Args:
        learner: Is examined.
        samples: The tasks' support.
        loss_fn: The inner loss.
    """
    if learner in examined:
        return

    def run(x: Data) -> Tensor:
        state, (support, y) = learner.state(), samples.real(0)
        features = learner.embed(state, support)
        model = adapt_task(learner, state, features, y, samples.ways, loss_fn, 0)
        return learner.predict(state, model, learner.embed(state, x))

    examine(learner, learner.model, run, samples)


def examine(owner: object, module: nn.Module, run: Callable[[Any], Any], samples: Samples) -> None:
    """Finds out, once for each owner, whether sequence layers mix the samples of a task.

    Those layers are then in `functional.mixing`, so that they count in `functional.couples_samples`.

    Args:
        owner: Who is remembered as examined.
        module: Whose layers are meant.
        run: Computes one output for each sample: ``[samples, ...] -> [samples, ...]``.
        samples: The tasks.
    """
    if owner in examined:
        return
    layers = [m for m in module.modules() if isinstance(m, functional.SEQUENTIAL)]
    if not layers or any(m in functional.mixing for m in layers):
        examined.add(owner)
        return
    x = samples.real(0)[0]
    if len(x) < 2 or functional.couples_samples(module):
        return
    examined.add(owner)
    suspects = _suspects(layers, run, x)
    if suspects and depends(run, x):
        functional.mixing.update(suspects)
        names = [name or type(m).__name__ for name, m in module.named_modules() if m in suspects]
        warn(
            f"the samples of a task change each other's outputs, because {', '.join(names)} takes them for "
            "steps of one sequence. Build the layer with batch_first=True and give it [samples, time, "
            "features]. If samples are to see each other, set couples_samples = True on the layer."
        )


def _suspects(layers: Sequence[nn.Module], run: Callable[[Any], Any], x: Data) -> list[nn.Module]:
    """The layers whose axis of independent sequences does not grow with the samples."""
    few, more = (_sequences(layers, run, rows) for rows in (x, joined(torch.cat, [x, x[:1]])))
    return [m for m in layers if few[m] != more[m]]


def _sequences(
    layers: Sequence[nn.Module], run: Callable[[Any], Any], x: Data
) -> dict[nn.Module, list[float]]:
    """How many sequences each layer is given for each sample, call by call."""
    found: dict[nn.Module, list[float]] = {layer: [] for layer in layers}

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if isinstance(given, Tensor):
            sequences = given.shape[0 if layer.batch_first else 1] if given.ndim == 3 else 1
            found[layer].append(sequences / len(x))

    handles = [m.register_forward_pre_hook(look, with_kwargs=True) for m in layers]
    try:
        with torch.no_grad(), functional.random_state_kept(x):
            run(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def depends(run: Callable[[Any], Any], x: Data) -> bool:
    """Whether the first or last sample's output changes when all other samples are replaced by it.

    Args:
        run: As in `examine`.
        x: ``[samples, ...]``, two or more that differ.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> depends(lambda x: 2 * x, x), depends(lambda x: x - x.mean(0), x)
        (False, True)
    """
    with torch.no_grad(), functional.random_state_kept(x):
        state = functional.random_state()

        def outputs(inputs: Any) -> Tensor:
            functional.set_random_state(state)  # the same dropout every time
            return packed(run(inputs), 1)

        before = outputs(x)
        for i in (0, len(x) - 1):
            after = outputs(x[torch.full((len(x),), i, device=x.device)])[i]
            scale = float(before[i].abs().max())
            if not torch.allclose(after, before[i], rtol=1e-3, atol=1e-4 * scale, equal_nan=True):
                return True
    return False


examined: weakref.WeakSet[object] = weakref.WeakSet()
"""Learners and extractors that were examined."""
