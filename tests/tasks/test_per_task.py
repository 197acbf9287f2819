"""Stacking what was computed task by task."""

import torch
from torch import Tensor
from torch.testing import assert_close

from trlearner.tasks.nested import per_task

EXACT = {"rtol": 0.0, "atol": 0.0}


def test_per_task_stacks_real_samples():
    x = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    seen = []

    def double(i: int, keep) -> Tensor:
        seen.append(x[i][keep].shape[0])
        return 2 * x[i][keep]

    assert_close(per_task(double, None, 2), 2 * x, **EXACT)
    assert_close(per_task(double, mask, 2), 2 * x * mask[..., None], **EXACT)
    assert seen == [3, 3, 2, 2]


def test_per_task_is_differentiable_under_a_mask():
    x = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    per_task(lambda i, keep: x[i][keep] ** 2, mask, 2).sum().backward()
    assert_close(x.grad, torch.where(mask, 2 * x.detach(), 0.0), **EXACT)
