"""A warning points at the user's line, however deep in the library it arises."""

import warnings

import pytest
import torch
from torch import nn

import trlearner as tr
from trlearner.base.warn import warn


@pytest.mark.unchecked
def test_from_within_the_library_it_points_here() -> None:
    learner = tr.MAML(nn.Linear(2, 2), steps=1)
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2))
    x = torch.rand(1, 3, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg(learner, tr.TaskBatch(support=(x, x), query=(x, x)))
    assert [w.filename for w in caught] == [__file__]


def test_called_by_a_user_it_points_at_the_call() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("look here")
    assert [(w.filename, str(w.message)) for w in caught] == [(__file__, "look here")]
