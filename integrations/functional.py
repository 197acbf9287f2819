"""Loops on plain `torch.func`: adapted parameters are stacked, ``{name: [tasks, ...]}``.

Before::

    def adapt(x, y):
        fit = lambda p: loss_fn(functional_call(net, p, (x,)), y)
        params = dict(net.named_parameters())
        gradient = grad(fit)(params)
        return {name: p - 0.01 * gradient[name] for name, p in params.items()}


    def ask(params, x, y):
        return loss_fn(functional_call(net, params, (x,)), y)


    fast = vmap(adapt)(x, y)
    loss = vmap(ask)(fast, xq, yq).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

After, with the optimizer over ``[*net.parameters(), *reg.parameters()]``::

    tasks = reg.collect()  # new
    fast = vmap(adapt)(x, y)
    for i, model in enumerate(adapted(net, fast)):  # new
        tasks.add(model, support=(x[i], y[i]), query=(xq[i], yq[i]))  # new
    loss = vmap(ask)(fast, xq, yq).mean() + tasks.penalty()  # new: + tasks.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from trlearner.integrations.snapshot import snapshot


def adapted(net: nn.Module, params: Mapping[str, Tensor]) -> list[Callable[[Tensor], Any]]:
    """The adapted model of every task.

    Args:
        net: The module that ``functional_call`` is given.
        params: Its adapted parameters by name, ``[tasks, ...]``; names that are missing did not adapt.

    Raises:
        ValueError: A name is not the module's, or the numbers of tasks differ.
    """
    own = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers())
    for name, tensor in params.items():
        wanted = list(own[name].shape) if name in own else None
        if wanted is None or tensor.ndim == 0 or list(tensor.shape[1:]) != wanted:
            raise ValueError(
                f"params[{name!r}] must be [tasks, ...] with the shape of net's {name!r} behind it, "
                f"{'which it has not' if wanted is None else ['tasks', *wanted]}, got "
                f"{list(tensor.shape)}."
            )
    counts = {name: len(tensor) for name, tensor in params.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"params must be of one number of tasks, got {counts}.")
    tasks = next(iter(counts.values()))
    return [snapshot(net, {name: t[i] for name, t in params.items()}) for i in range(tasks)]
