"""Whether a loss takes these predictions and targets for pairs of one sample each."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from trlearner.base.functional import pure_call, random_state_kept
from trlearner.base.types import LossFn, State
from trlearner.tasks.nested import Data, Nested, arranged, raw

OF_NUMBERS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
MODULES_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class Misfit(ValueError):
    """The loss does not fit the data, on whichever engine.

    Args:
        problem: What is wrong.
        fix: What to do about it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(
            problem, fix
        )  # both, or the error could not be sent from a process to another
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}"


class LossInState:
    """A loss that is a module, with its parameters and buffers taken from a state.

    Args:
        module: The loss.
        own: Its parameters and buffers, by its own names.
    """

    def __init__(self, module: nn.Module, own: State) -> None:
        self.module, self.own = module, own

    def __call__(self, predictions: Data, targets: Data) -> Any:
        """The module's loss."""
        return pure_call(self.module, self.own, predictions, targets)


def plain(loss_fn: LossFn) -> LossFn:
    """The loss as the user gave it."""
    return loss_fn.module if isinstance(loss_fn, LossInState) else loss_fn


def check_targets(loss_fn: LossFn, predictions: Any, targets: Any) -> None:
    """Refuse labels where the loss is one of numbers, and shapes that the loss broadcasts across samples.

    Shapes are compared at each call. Only where they could be broadcast across samples the loss is tried,
    on numbers of its own, and once for each loss and shapes.

    Args:
        loss_fn: For one task.
        predictions: ``[samples, ...]``; a model of the user's own may return something else than a tensor.
        targets: ``[samples, ...]``.

    Raises:
        Misfit: Naming both, and what to do.
    """
    asked = loss_fn
    if isinstance(predictions, Nested) and len(predictions.leaves) == 1:
        like, (predictions,) = predictions, predictions.leaves

        def asked(p: Tensor, y: Tensor) -> Any:
            return loss_fn(raw(arranged(like, [p])), y)

    if not isinstance(predictions, Tensor) or not isinstance(targets, Tensor):
        return
    if not (targets.is_floating_point() or targets.is_complex()):
        _check_numbers(loss_fn, targets)
    p, y = predictions.shape, targets.shape
    if len(p) == len(y) or not _broadcasts(p, y):
        return
    given = (p, y, predictions.dtype, targets.dtype, asked is loss_fn)
    if not once(_fitting, loss_fn, given):
        return
    if _mixes_samples(plain(asked), predictions, targets):
        raise Misfit(
            f"loss_fn broadcasts predictions {list(p)} and targets {list(y)} of one task to "
            f"{list(torch.broadcast_shapes(p, y))}, so each prediction is compared with the targets of "
            "other samples.",
            f"Give both one shape: {_one_shape(p, y)}",
        )
    remember(_fitting, loss_fn, given)


Memo = weakref.WeakKeyDictionary[Any, dict[Hashable, Any]]


def once(memo: Memo, loss_fn: LossFn, given: Hashable) -> bool:
    """Whether nothing is remembered of this loss and what was given to it."""
    try:
        return given not in memo.get(plain(loss_fn), ())
    except TypeError:  # neither hashed nor referred to weakly: it is tried each time
        return True


def remember(memo: Memo, loss_fn: LossFn, given: Hashable, value: Any = None) -> None:
    """Keeps what was found out about a loss for as long as the loss lives."""
    try:
        memo.setdefault(plain(loss_fn), {})[given] = value
    except TypeError:
        return


@contextmanager
def trying() -> Iterator[None]:
    """The loss is called on real numbers, whatever is traced around it, and leaves no trace."""
    with (
        _disable_current_modes(),
        torch.no_grad(),
        random_state_kept(torch.empty(0)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def numbers(shape: torch.Size, like: Tensor, device: torch.device) -> Tensor:
    """Rising numbers between 0 and 1; of labels, zeros and then ones."""
    size = shape.numel()
    if not like.is_floating_point():
        return (torch.arange(size) * 2 // size).to(like.dtype).reshape(shape).to(device)
    # Not evenly spaced, or all rows of logits would have one softmax.
    rising = ((torch.arange(size) + 1.0) / (size + 1)) ** 1.5
    return rising.to(like.dtype).reshape(shape).to(device)


def _check_numbers(loss_fn: LossFn, targets: Tensor) -> None:
    given = plain(loss_fn)
    function = given.func if isinstance(given, functools.partial) else given
    if function in OF_NUMBERS or isinstance(function, MODULES_OF_NUMBERS):
        name = getattr(function, "__name__", type(function).__name__)
        raise Misfit(
            f"loss_fn={name} compares numbers, got targets of {targets.dtype}.",
            "If they are class labels, pass loss_fn=torch.nn.functional.cross_entropy. If they are numbers, "
            "convert them: y.float().",
        )


def _one_shape(p: torch.Size, y: torch.Size) -> str:
    if len(p) > len(y):
        return "y.unsqueeze(-1), or let the model return predictions without the last axis."
    return "y.squeeze(-1), or let the model return predictions with one more axis, p.unsqueeze(-1)."


def _broadcasts(p: torch.Size, y: torch.Size) -> bool:
    """Whether shapes of unlike length could be broadcast."""
    return all(a == b or a == 1 or b == 1 for a, b in zip(reversed(p), reversed(y), strict=False))


def _mixes_samples(loss_fn: LossFn, predictions: Tensor, targets: Tensor) -> bool:
    """Whether the loss does not see which target belongs to which prediction.

    Where targets ``[n, 1]`` are broadcast against predictions ``[n]``, their order is of no consequence. It
    matters again once both have as many axes. A loss that takes the shapes on purpose passes neither test,
    and one that ignores the order on purpose fails the second.
    """
    # A label that is out of a loss's range is an error on a CPU, and the end of the process on a GPU.
    on = predictions.device if targets.is_floating_point() else torch.device("cpu")
    first = predictions.ndim > targets.ndim

    def loss(longer: Tensor, shorter: Tensor) -> Tensor:
        return loss_fn(longer, shorter) if first else loss_fn(shorter, longer)

    with trying():
        both = [numbers(t.shape, t, on) for t in (predictions, targets)]
        longer, shorter = both if first else both[::-1]
        aligned = shorter.reshape(*shorter.shape, *[1] * (longer.ndim - shorter.ndim))
        try:
            return any(
                _same(loss(longer, shorter), loss(longer.flip(axis), shorter))
                and not _same(loss(longer, aligned), loss(longer.flip(axis), aligned))
                for axis, size in enumerate(longer.shape)
                if size > 1
            )
        except Exception:  # the loss does not take such shapes; if it should, its own call says why
            return False


def _same(a: Tensor, b: Tensor) -> bool:
    tolerance = max(1e-3, 8 * torch.finfo(a.dtype).eps)
    return bool((a - b).abs() <= tolerance * (a.abs() + b.abs()))


_fitting: Memo = weakref.WeakKeyDictionary()
