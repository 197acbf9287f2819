"""Engine ``channels_last``: ``loop`` with images laid out so that a CPU is quick with them.

A pixel's channels lie side by side, which pooling, normalization and convolution on a CPU prefer; and
BatchNorm gets a second derivative that keeps that layout, InstanceNorm one that is right in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from trlearner.base.types import Fast, State
from trlearner.engines import loop
from trlearner.engines.adapted import Adapted, Engine
from trlearner.engines.batch_norm import cheap_norms
from trlearner.engines.group_norm import safe_group_norms
from trlearner.engines.task_learner import InnerLoop, TaskLearner, Through
from trlearner.tasks.loss import task_losses
from trlearner.tasks.nested import Data, Nested


def laid_out(x: Any) -> Any:
    """Images ``[samples, channels, height, width]`` or filters channels-last; anything else as it is.

    Example:
        >>> laid_out(torch.ones(2, 1, 3, 4)).stride()
        (12, 1, 4, 1)
    """
    if isinstance(x, Nested):
        return x.map(laid_out)
    if x.ndim != 4 or not x.is_floating_point():
        return x
    # Of a single channel `contiguous` would leave the strides, by which layers go, as they are.
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


class _Laid(Through[TaskLearner]):
    """A learner whose images are laid out before it sees them."""

    def embed(self, state: State, x: Data) -> Any:
        with _norms():
            return self.learner.embed(state, laid_out(x))

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        # Else every step would bring filters and their gradients to one layout.
        def spread(fast: Fast) -> Fast:
            return {name: laid_out(value) for name, value in fast.items()}

        return self.learner.inner(state, replace(loop, spread=spread))

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        with _norms():
            return self.learner.predict(state, fast, laid_out(features))


@contextmanager
def _norms() -> Iterator[None]:
    with safe_group_norms(), cheap_norms():
        yield


def _embed(learner: TaskLearner, *rest: Any) -> Any:
    return loop.embed(_Laid(learner), *rest)


def _adapt(learner: TaskLearner, *rest: Any) -> Any:
    return loop.adapt(_Laid(learner), *rest)


def _predict(models: Adapted, *rest: Any) -> Any:
    return loop.predict(replace(models, learner=_Laid(models.learner)), *rest)


def _cross(models: Adapted, *rest: Any) -> Any:
    return loop.cross(replace(models, learner=_Laid(models.learner)), *rest)


ENGINE = Engine("channels_last", _embed, _adapt, _predict, _cross, task_losses)
