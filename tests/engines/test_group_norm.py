"""GroupNorm on engine `channels_last`, whose kernel in torch would crash the process."""

import pytest
import torch
from contracts import close
from torch import nn

import trlearner as tr
from trlearner.engines.group_norm import safe_group_norms

CLOSE = 1e-9


def images(*tasks: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(*tasks, 2, 4, 4, generator=g, dtype=torch.float64)


def step(model: nn.Module, engine: str, first_order: bool) -> dict[str, torch.Tensor]:
    learner = tr.MAML(model, lr=0.1, steps=2, first_order=first_order, engine=engine)
    reg = tr.TRLearner(tr.FunctionEncoder(images(2)), lam=0.5).double()
    x, y = images(3, 4), torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4, 1)
    out = reg(learner, tr.TaskBatch(support=(x, y), query=(x, y)))
    out.loss.backward()
    found = {n: p.grad for n, p in learner.named_parameters() if p.requires_grad}
    assert all(g.abs().max() > 1e-6 for g in found.values())
    return {"loss": out.loss.detach(), **found}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("before", ["nothing", "a frozen convolution"])
def test_images_that_need_no_gradient_are_normalized(before: str, first_order: bool) -> None:
    stem = nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
    found = {}
    for engine in ("loop", "channels_last"):
        torch.manual_seed(0)
        layers = [nn.GroupNorm(2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1)]
        model = nn.Sequential(stem if before != "nothing" else nn.Identity(), *layers).double()
        found[engine] = step(model, engine, first_order)
    assert found["loop"].keys() == found["channels_last"].keys()
    for name, expected in found["loop"].items():
        close(found["channels_last"][name], expected, CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_the_layer_gives_what_torch_gives(affine: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.GroupNorm(2, 6, affine=affine).to(dtype), torch.randn(4, 6, 3, 3).to(dtype)
    for p in layer.parameters():
        p.data += 0.3 * torch.randn_like(p)
    with safe_group_norms():
        found = layer(x)
    assert found.dtype == dtype
    # bfloat16 keeps 8 bits, and rounds once more here.
    close(found, layer(x), 1e-12 if dtype == torch.float64 else 2**-6)
