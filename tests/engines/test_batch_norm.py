"""BatchNorm's second derivative by hand, judged by finite differences and by autograd's own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm as plain
from torch.testing import assert_close

from trlearner.engines.batch_norm import batch_norm, cheap_norms


def inputs(*shape, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    sizes = (shape, shape[1:2], shape[1:2])
    return [torch.randn(s, generator=draw, dtype=dtype).requires_grad_() for s in sizes]


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4), (3, 2, 2, 3)])
def test_finite_differences_agree_once_and_twice(shape):
    given = inputs(*shape)
    assert torch.autograd.gradcheck(batch_norm, given)
    assert torch.autograd.gradgradcheck(batch_norm, given)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("zero", [False, True])
def test_a_step_of_a_meta_learner_has_the_gradient_that_autograd_finds(layout, zero):
    def meta_gradient(norm):
        x, weight, bias = inputs(6, 3, 5, 5)
        x = x.detach().to(memory_format=layout).requires_grad_()
        if zero:
            weight = torch.zeros_like(weight).requires_grad_()
        loss = norm(x, weight, bias).sin().square().sum()
        gradients = torch.autograd.grad(loss, (x, weight, bias), create_graph=True)
        moved = [t - 0.1 * g for t, g in zip((x, weight, bias), gradients, strict=True)]
        return torch.autograd.grad(norm(*moved).cos().sum(), (x, weight, bias))

    wanted = meta_gradient(lambda x, w, b: plain(x, None, None, w, b, training=True))
    assert_close(meta_gradient(batch_norm), wanted, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1, 2)])
def test_what_needs_no_gradient_is_no_obstacle(frozen):
    """The first layer's images, or weights that do not adapt."""

    def second(norm):
        given = [t.detach() if i in frozen else t.sin() for i, t in enumerate(inputs(4, 3, 2, 2))]
        leaf = torch.full((), 0.7, dtype=torch.float64, requires_grad=True)
        loss = norm(given[0], *(leaf * t for t in given[1:])).sin().sum()
        (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (gg,) = torch.autograd.grad(g.sin(), leaf, create_graph=True)
        return torch.autograd.grad(gg.sin(), leaf)

    wanted = second(lambda x, w, b: plain(x, None, None, w, b, training=True))
    assert_close(second(batch_norm), wanted)


def test_results_keep_the_layout():
    x, weight, bias = inputs(2, 3, 4, 4)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    (g,) = torch.autograd.grad(batch_norm(x, weight, bias).square().sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.square().sum(), x)
    assert g.is_contiguous(memory_format=torch.channels_last)
    assert gg.is_contiguous(memory_format=torch.channels_last)


def test_a_third_derivative_is_right_as_well():
    def third(norm):
        x, weight, bias = inputs(4, 3)
        value = norm(x, weight, bias).sin().sum()
        for _ in range(2):
            found = torch.autograd.grad(value, (x, weight), create_graph=True)
            value = sum(g.sin().sum() for g in found)
        return torch.autograd.grad(value, (x, weight))

    wanted = third(lambda x, w, b: plain(x, None, None, w, b, training=True))
    assert_close(third(batch_norm), wanted, rtol=0.0, atol=1e-9)


def takes(layer, x):
    with cheap_norms():
        return "_Norm" in str(layer(x).grad_fn)


def test_it_stands_in_only_where_it_computes_the_same():
    x = torch.randn(4, 3, 2, 2)
    silent = {"track_running_stats": False}
    assert takes(nn.BatchNorm2d(3, **silent), x)
    assert takes(nn.BatchNorm1d(3, **silent), x[..., 0])
    assert not takes(nn.BatchNorm2d(3), x)  # would have to update its statistics
    assert not takes(nn.BatchNorm2d(3).eval(), x)
    assert not takes(nn.BatchNorm2d(3, affine=False, **silent), x.requires_grad_())
    assert not takes(nn.BatchNorm2d(3, **silent), x.bfloat16())
    assert not takes(nn.BatchNorm2d(3, **silent).to("meta"), x.to("meta"))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        takes(nn.BatchNorm1d(3, **silent), torch.ones(1, 3))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_is_right_whatever_the_layout_of_its_gradient(samples, evaluating, affine):
    layer = nn.InstanceNorm2d(3, affine=affine, track_running_stats=True).double()
    layer.running_mean.uniform_()
    layer.running_var.uniform_(0.5, 2.0)
    layer.train(not evaluating)
    draw = torch.Generator().manual_seed(0)
    x, g = (torch.randn(samples, 3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2))

    def gradients(layout):
        one = x.to(memory_format=layout, copy=True).requires_grad_()
        upstream = g.to(memory_format=layout, copy=True).requires_grad_()
        (first,) = torch.autograd.grad(layer(one), one, upstream, create_graph=True)
        return first, *torch.autograd.grad(first.sin().sum(), (one, upstream), allow_unused=True)

    wanted = gradients(torch.contiguous_format)
    with cheap_norms():
        found = [gradients(torch.contiguous_format), gradients(torch.channels_last)]
    for each in found:
        for one, other in zip(each, wanted, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, rtol=0.0, atol=1e-10)


def test_instance_norm_refuses_a_single_pixel_as_ever():
    with cheap_norms(), pytest.raises(ValueError, match="more than 1 spatial element"):
        nn.InstanceNorm2d(2)(torch.ones(3, 2, 1, 1))
