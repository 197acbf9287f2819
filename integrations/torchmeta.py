"""Loops on torchmeta (github.com/tristandeleu/pytorch-meta): its batches, its ``net(x, params=params)``.

Before::

    outer_loss = torch.tensor(0.0)
    for x, y, xq, yq in zip(*batch["train"], *batch["test"]):
        params = None
        for _ in range(5):
            inner_loss = loss_fn(net(x, params=params), y)
            params = gradient_update_parameters(net, inner_loss, params=params, step_size=0.01)
        outer_loss += loss_fn(net(xq, params=params), yq)
    outer_loss.div_(len(batch["train"][0]))
    optimizer.zero_grad()
    outer_loss.backward()
    optimizer.step()

After, with the optimizer over ``[*net.parameters(), *reg.parameters()]``::

    tasks = reg.collect()  # new
    outer_loss = torch.tensor(0.0)
    for x, y, xq, yq in zip(*batch["train"], *batch["test"]):
        params = None
        for _ in range(5):
            inner_loss = loss_fn(net(x, params=params), y)
            params = gradient_update_parameters(net, inner_loss, params=params, step_size=0.01)
        tasks.add(adapted(net, params), support=(x, y), query=(xq, yq))  # new
        outer_loss += loss_fn(net(xq, params=params), yq)
    outer_loss.div_(len(batch["train"][0]))
    optimizer.zero_grad()
    (outer_loss + tasks.penalty()).backward()  # new: + tasks.penalty()
    optimizer.step()

A learner of ours needs no inner loop, and takes torchmeta's batches as they come:
``reg(learner, tr.TaskBatch.from_torchmeta(batch))``. torchmeta's `Categorical` numbers each task's classes
anew; so pass ``ways=`` there (or to `collect`), and ``align="sinkhorn"`` to `TRLearner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def adapted(net: nn.Module, params: Mapping[str, Tensor]) -> Callable[[Tensor], Any]:
    """The module with a task's adapted parameters and with buffers of its own.

    Its BatchNorm moves the running statistics whenever it is asked in training mode, so it is asked with
    copies of them.

    Args:
        net: A torchmeta `MetaModule`.
        params: What `gradient_update_parameters` returned.
    """
    own = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def predict(x: Tensor) -> Any:
        copies = {name: buffer.clone() for name, buffer in own.items()}
        return functional_call(net, copies, (x,), {"params": params})

    return predict
