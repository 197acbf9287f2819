"""Operations without a second derivative, and what to do about each."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Once:
    """An operation without a second derivative.

    Attributes:
        node: How the name of its node in autograd's graph begins.
        error: What torch's own error says of it, as a pattern.
        problem: What is wrong, with the layer as the subject.
        fix: What to do about it.
    """

    node: str
    error: str
    problem: str
    fix: str


ONCE = (
    Once(
        "ScaledDotProduct",
        r"derivative for .*(?:scaled_dot_product|flash_attention|efficient_attention)",
        "uses a fused attention kernel, which has no second derivative.",
        "put `with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):` around the "
        "step and its backward(), or use first_order=True.",
    ),
    Once(
        "CudnnRnn",
        r"derivative for .*cudnn_rnn|cudnn RNN backward can only",
        "runs on cuDNN, whose recurrent layers have no second derivative (and in evaluation mode no first).",
        "put `with torch.backends.cudnn.flags(enabled=False):` around the step and its backward(), "
        "or use first_order=True.",
    ),
    Once(
        "Cdist",
        r"derivative for .*_cdist",
        "calls torch.cdist, whose kernel for at most 25 rows has no second derivative.",
        'pass compute_mode="use_mm_for_euclid_dist", or use first_order=True.',
    ),
)
OTHER = Once(
    "",
    "",
    "uses an operation that torch can differentiate only once.",
    "compute it by other operations, or use first_order=True.",
)
FAILING = (
    "torch::autograd::NotImplemented",
    "torch::autograd::Error",
    "CdistBackwardBackward0",
    "CudnnRnnBackwardBackward0",
)
"""Nodes of autograd's graph that raise whenever a backward pass reaches them."""


def advice(once: Once) -> str:
    """What a user is told who needs a second derivative that torch does not have."""
    return (
        f"the model {once.problem[:-1]}, but a second-order step differentiates twice. To mend it, {once.fix}"
        " (In a loop of your own, first_order=True is create_graph=False.) tr.doctor(model, batch) names the "
        "layer."
    )


def explain_backward(owner: Any, mode: Hashable, roots: Iterable[Tensor | None]) -> None:
    """Where a backward pass is going to fail for want of a second derivative, it will say what to do.

    The graph is looked through once for each owner and mode, or every time if something was found.

    Args:
        owner: A learner or a regularizer; what is known of it goes with it.
        mode: What else the operations depend on.
        roots: Gradients, or what was computed from them.
    """
    known = sound.setdefault(owner, set())
    if mode in known:
        return
    carrying = [root.grad_fn for root in roots if root is not None and root.requires_grad]
    if not carrying:
        return
    failing = [node for node in _below(carrying) if node.name() in FAILING]
    for node in failing:
        node.register_prehook(_refusal(advice(_operation(node))))
    if not failing:
        known.add(mode)


def _operation(node: Any) -> Once:
    """What lacks the derivative: a failing node does not say so, but it leads to its operation."""
    names = [node.name(), *(n.name() for n, _ in node.next_functions if n is not None)]
    return next((once for once in ONCE if any(n.startswith(once.node) for n in names)), OTHER)


def _refusal(message: str) -> Callable[[Any], None]:
    def refuse(gradients: Any) -> None:
        raise RuntimeError(message)

    return refuse


def _below(nodes: Iterable[Any]) -> Iterator[Any]:
    seen: set[Any] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


sound: weakref.WeakKeyDictionary[Any, set[Hashable]] = weakref.WeakKeyDictionary()
"""By owner, the modes in which its graph was looked through and found to have second derivatives."""
