"""A step whose activations are computed again in the backward pass, exact to any order."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trlearner.base.functional import random_state, set_random_state
from trlearner.base.types import Fast


def recomputed(step: Callable[[Fast], Fast], fast: Fast, uses: Iterable[Tensor]) -> Fast:
    """``step(fast)``, whose graph keeps nothing but `fast` once the step is done.

    ``torch.utils.checkpoint`` would drop the activations as soon as they are made, so that a gradient taken
    *within* the step computes it a second time, and the backward pass a third time. Here they stay until the
    step is done: two times in all.

    Args:
        step: May take gradients of its own, with a graph. It draws the same random numbers again.
        fast: What it starts from, by name.
        uses: What else it depends on and must not be changed before the backward pass.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> y = recomputed(lambda fast: {"x": fast["x"] ** 3}, {"x": x}, [])["x"]
        >>> torch.autograd.grad(y, x)
        (tensor(12.),)
    """
    frame = _Frame(step, fast, uses)
    try:
        with saved_tensors_hooks(frame.hold, frame.give):
            return step(fast)
    finally:
        frame.done()


class _Held:
    """In place of a tensor that autograd wants to keep."""

    def __init__(self, frame: _Frame, tensor: Tensor) -> None:
        self.frame = frame
        self.tensor: Tensor | None = tensor


class _Frame:
    """One step: how to compute it again, and what autograd holds of it."""

    def __init__(self, step: Callable[[Fast], Fast], fast: Fast, uses: Iterable[Tensor]) -> None:
        self.step, self.fast = step, fast
        self.versions = [(t, t._version) for t in (*uses, *fast.values()) if t.requires_grad]
        self.draws = random_state()
        kinds = {"cpu", *(t.device.type for t in fast.values())}
        self.casts = [(k, torch.get_autocast_dtype(k), torch.is_autocast_enabled(k)) for k in kinds]
        self.held: list[weakref.ref[_Held]] = []
        self.running = True

    def hold(self, tensor: Tensor) -> _Held:
        """Called by autograd for each tensor that the step's graph keeps, in a fixed order."""
        held = _Held(self, tensor.detach())  # with its graph, it would keep itself alive
        self.held.append(weakref.ref(held))
        return held

    def give(self, held: _Held) -> Tensor:
        """Called by autograd when it needs the tensor: within the step, or in the backward pass."""
        if held.tensor is None:
            self.again()
        found = held.tensor
        assert found is not None
        if not self.running:
            held.tensor = None  # who goes backward twice computes it twice
        return found

    def done(self) -> None:
        """Nothing is kept from now on."""
        self.running = False
        for ref in self.held:
            if (held := ref()) is not None:
                held.tensor = None

    def again(self) -> None:
        """Computes the step once more, for whatever is still held of it.

        Raises:
            RuntimeError: It is no longer the same step.
        """
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError(
                "a parameter was changed in place between a step with recompute=True and its backward pass, "
                "which computes the inner steps again: call loss.backward() before optimizer.step()."
            )
        again = iter(self.held)
        made = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal made
            made += 1
            found = tensor.detach()
            ref = next(again, None)
            if ref is not None and (held := ref()) is not None:
                held.tensor = found
            return found

        fast = {n: t.detach().requires_grad_(t.requires_grad) for n, t in self.fast.items()}
        after = random_state()
        set_random_state(self.draws)
        try:
            with ExitStack() as stack:
                for kind, dtype, enabled in self.casts:
                    stack.enter_context(torch.autocast(kind, dtype, enabled))
                stack.enter_context(torch.enable_grad())
                stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
                self.step(fast)
        finally:
            set_random_state(after)
        if made != len(self.held):
            raise RuntimeError(
                f"computed again in the backward pass, an inner step kept {made} tensors in place of "
                f"{len(self.held)}: it is not the same step. With recompute=True leave model.train() and "
                ".eval() as they are until loss.backward() is through."
            )
