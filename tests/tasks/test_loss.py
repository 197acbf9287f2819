"""The loss of one task, with and without a mask."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from trlearner.tasks.loss import check_decomposes, task_loss

WEIGHTS = torch.tensor([1.0, 5.0, 2.0, 0.5], dtype=torch.float64)
TIGHT = {"rtol": 0.0, "atol": 1e-12}


def regression(samples: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(samples, 2, generator=g, dtype=torch.float64)
    y = torch.randn(samples, 2, generator=g, dtype=torch.float64)
    mask = torch.tensor([True, False] * (samples // 2))
    return p, y, mask


def classification() -> tuple[Tensor, Tensor, Tensor]:
    p, _, mask = regression()
    return p.repeat(1, 2), torch.tensor([0, 3, 1, 1, 2, 0]), mask


def test_without_a_mask_it_is_the_users_loss():
    p, y, _ = regression()
    seen = []

    def loss_fn(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a, b))
        return F.mse_loss(a, b)

    assert_close(task_loss(loss_fn, p, y), F.mse_loss(p, y), **TIGHT)
    assert len(seen) == 1 and seen[0][0] is p and seen[0][1] is y


@pytest.mark.parametrize(
    ("loss_fn", "data"),
    [
        (F.mse_loss, regression),
        (F.l1_loss, regression),
        (F.cross_entropy, classification),
        (lambda p, y: F.cross_entropy(p, y, label_smoothing=0.1), classification),
        (lambda p, y: F.cross_entropy(p, y, weight=WEIGHTS), classification),
        (lambda p, y: ((p - y) ** 2).mean(-1).mean(), regression),
    ],
    ids=["mse", "l1", "cross-entropy", "smoothed", "weighted", "own"],
)
def test_a_mask_equals_dropping(loss_fn, data):
    p, y, mask = data()
    p.requires_grad_()
    masked, dropped = task_loss(loss_fn, p, y, mask), loss_fn(p[mask], y[mask])
    assert_close(masked, dropped, **TIGHT)
    found, wanted = (torch.autograd.grad(loss, p)[0] for loss in (masked, dropped))
    assert_close(found, wanted, **TIGHT)
    assert found[~mask].abs().max() == 0 and found[mask].abs().min() > 0


def test_as_many_samples_as_classes_is_no_special_case():
    # Called on [tasks, samples, classes] at once, cross-entropy would take samples for classes.
    p, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([3, 1, 0, 2])
    mask = torch.ones(4, dtype=torch.bool)
    assert_close(task_loss(F.cross_entropy, p, y, mask), F.cross_entropy(p, y), **TIGHT)


@pytest.mark.unchecked
@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_must_be_a_scalar(masked: bool):
    p, y, mask = regression()
    mask = mask if masked else None
    with pytest.raises(
        ValueError, match=r"must return a scalar, .* got \[\d, 2\].*reduction='mean'"
    ):
        task_loss(lambda a, b: (a - b) ** 2, p, y, mask)
    with pytest.raises(ValueError, match="must return a scalar, .* got float"):
        task_loss(lambda a, b: 0.5, p, y, mask)


def test_losses_that_are_means_decompose():
    p, y, _ = regression()
    assert check_decomposes(F.mse_loss, p, y) is None
    p, y, _ = classification()
    assert check_decomposes(F.cross_entropy, p, y) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_half_precision_is_no_reason_to_refuse(dtype: torch.dtype):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        p, y = torch.randn(13, 2, generator=g).to(dtype), torch.randn(13, 2, generator=g).to(dtype)
        assert check_decomposes(F.mse_loss, p, y) is None
        with pytest.raises(ValueError, match="must be the mean .* on 13 samples"):
            check_decomposes(lambda a, b: F.mse_loss(a, b, reduction="sum"), p, y)


@pytest.mark.parametrize(
    ("loss_fn", "data"),
    [
        (lambda p, y: F.mse_loss(p, y, reduction="sum"), regression),
        (lambda p, y: F.mse_loss(p, y).sqrt(), regression),
        (lambda p, y: -torch.corrcoef(torch.stack([p[:, 0], y[:, 0]]))[0, 1], regression),
    ],
    ids=["sum", "root", "correlation"],
)
@pytest.mark.filterwarnings("ignore:cov:UserWarning")  # torch, of the correlation of one sample
def test_losses_across_samples_are_refused(loss_fn, data):
    p, y, _ = data()
    with pytest.raises(ValueError, match="must be the mean .* on 6 samples, .* engine='loop'"):
        check_decomposes(loss_fn, p, y)


def test_the_check_keeps_no_graph():
    p, y, _ = regression()
    p.requires_grad_()
    modes = []

    def loss_fn(a: Tensor, b: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return F.mse_loss(a, b)

    check_decomposes(loss_fn, p, y)
    assert modes == [False, False]


def test_autocast_may_round_one_of_the_two():
    p, y, _ = classification()
    with torch.autocast("cpu", torch.bfloat16):
        # Autocast takes cross-entropy in single precision, but not under vmap.
        assert (
            check_decomposes(
                lambda a, b: F.cross_entropy(a, b, reduction="none").mean(), p.bfloat16(), y
            )
            is None
        )
