"""The doctor on small language models, built as GPT-2 and Llama are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import trlearner as tr

TOKENS, WIDTH, HEADS, LONGEST = 7, 8, 2, 6


class Cache:
    """Keys and values of the positions so far, one pair a layer; layers write into it."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            before = self.layers[layer]
            key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
        self.layers[layer] = key, value
        return key, value


def heads_of(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)


class Block(nn.Module):
    """GPT-2's: one matrix for queries, keys and values, and the causal mask as a buffer."""

    mask: Tensor

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.together, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        mask = torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        size = x.shape[1]
        q, k, v = map(heads_of, self.together(self.first(x)).chunk(3, -1))
        k, v = cache.update(k, v, self.place)
        mask = self.mask[:size, :size]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


class GPT(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(Block(i) for i in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        cache = Cache()
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, cache=cache)
        return self.head(self.norm(x))[:, -1]


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Rotary(nn.Module):
    """Cosines and sines of the positions, of a buffer, without a gradient."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        steps = torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)
        self.register_buffer("frequencies", 10_000.0**-steps, persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].to(self.frequencies) * self.frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * rotary[0] + torch.cat([-right, left], -1) * rotary[1]


class LlamaBlock(nn.Module):
    """Rotary embeddings, one pair of keys and values for all heads, a gated linear unit."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place
        self.first, self.second = Norm(), Norm()
        self.q, self.k, self.v = (nn.Linear(WIDTH, w, bias=False) for w in (WIDTH, 4, 4))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 12, bias=False) for _ in range(2))
        self.down = nn.Linear(12, WIDTH, bias=False)

    def forward(self, x: Tensor, *, rotary: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
        h = self.first(x)
        q, k, v = heads_of(self.q(h)), heads_of(self.k(h)), heads_of(self.v(h))
        k, v = cache.update(turned(k, rotary), v, self.place)
        k, v = (t.expand(-1, HEADS, -1, -1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(turned(q, rotary), k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.tokens, self.rotary = nn.Embedding(TOKENS, WIDTH), Rotary()
        self.blocks = nn.ModuleList(LlamaBlock(i) for i in range(depth))
        self.norm, self.head = Norm(), nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        cache, x = Cache(), self.tokens(ids)
        rotary = self.rotary(x, torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, rotary=rotary, cache=cache)
        return self.head(self.norm(x))[:, -1]


def batch() -> tr.TaskBatch:
    x, y = torch.randint(TOKENS, (2, 3, LONGEST)), torch.randint(TOKENS, (2, 3))
    return tr.TaskBatch((x, y), (x, y), ways=TOKENS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.full
@pytest.mark.parametrize(("model", "depth"), [(GPT, 2), (Llama, 1)])
def test_attention_is_all_that_is_found(model: type[nn.Module], depth: int):
    """A cache that layers write into holds tensors of the recorded forward, whose graph is gone."""
    found = tr.doctor(model(depth), batch())
    assert {(f.layer, f.kind) for f in found} == {(f"blocks.{i}", "fails") for i in range(depth)}
    assert all("fused attention kernel" in f.problem for f in found)


@pytest.mark.full
@pytest.mark.parametrize("model", [GPT, Llama])
def test_with_the_plain_kernel_nothing_is_found_and_engines_agree(model: type[nn.Module]):
    made, tasks, losses = model(1).double(), batch(), []
    with sdpa_kernel(SDPBackend.MATH):
        assert len(tr.doctor(made, tasks)) == 0
        for engine in ("loop", "batched"):
            learner = tr.MAML(made, lr=0.1, steps=1, engine=engine)
            reg = tr.TRLearner(tr.UpdateEncoder(dim=4), loss_fn=F.cross_entropy, lam=0.0)
            losses.append(reg(learner, tasks).loss)
            losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=0.0, atol=1e-9)
