"""Operations without a second derivative: whoever meets one is told what to do."""

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import trlearner as tr

X, Y = torch.rand(3, 5, 4), torch.rand(3, 5, 1)
BATCH = tr.TaskBatch((X, Y), (X, Y))
# Of torch's own: vmap has no rule for the kernel, and says so once.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop because")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q = self.body(x).reshape(len(x), 1, 2, 2)
        return self.head(F.scaled_dot_product_attention(q, q, q).flatten(1))


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(2, 1)
        self.centres = nn.Parameter(torch.rand(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cdist(self.body(x), self.centres))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(self.body(x))


def learner(model: nn.Module, engine: str, **options) -> tr.MAML:
    return tr.MAML(model, lr=0.1, steps=2, engine=engine, **options)


def whole_step(model: nn.Module, engine: str, **options) -> None:
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4))
    reg(learner(model, engine, **options), BATCH).loss.backward()


def adapting(model: nn.Module, engine: str, **options) -> None:
    adapted = learner(model, engine, **options).adapt(BATCH.support, F.mse_loss)
    adapted(X).square().sum().backward()


def own_loop(model: nn.Module, create_graph: bool = True) -> None:
    tasks, loss = tr.TRLearner(tr.LabelledEncoder(None, dim=4)).collect(), 0
    for x, y in zip(X, Y, strict=True):
        named = dict(model.named_parameters())
        inner = F.mse_loss(model(x), y)
        g = torch.autograd.grad(inner, list(named.values()), create_graph=create_graph)
        fast = {n: p - 0.1 * d for (n, p), d in zip(named.items(), g, strict=True)}

        def adapted(x: Tensor, fast=fast) -> Tensor:
            return torch.func.functional_call(model, fast, (x,))

        tasks.add(adapted, support=(x, y), query=(x, y))
        loss = loss + F.mse_loss(adapted(x), y) / len(X)
    (loss + tasks.penalty()).backward()


CASES = {
    Attention: r"fused attention kernel.*sdpa_kernel\(torch.nn.attention.SDPBackend.MATH\)",
    Distance: r"torch.cdist.*compute_mode=\"use_mm_for_euclid_dist\"",
    Squared: r"can differentiate only once.*compute it by other operations",
}
TWO_FIXES = r".*first_order=True.*tr\.doctor\(model, batch\)"


@pytest.mark.parametrize("run", [whole_step, adapting])
@pytest.mark.parametrize("engine", ["loop", "batched", *later("higher", "traced")])
@pytest.mark.parametrize("model", CASES)
def test_every_entrance_says_what_lacks_a_derivative_and_what_to_do(model, engine, run):
    if model is Squared and engine in ("batched", "traced"):
        return  # vmap cannot run it at all
    with pytest.raises(RuntimeError, match=CASES[model] + TWO_FIXES):
        run(model(), engine)


@pytest.mark.parametrize("model", CASES)
def test_loops_of_the_users_own_are_told_as_well(model):
    with pytest.raises(RuntimeError, match=CASES[model] + TWO_FIXES):
        own_loop(model())
    own = model()
    own_loop(own, create_graph=False)
    assert own.body.weight.grad is not None


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_recomputed_steps_say_it_when_they_are_computed_again(engine: str):
    with pytest.raises(RuntimeError, match=CASES[Attention] + TWO_FIXES):
        whole_step(Attention(), engine, recompute=True)


def test_a_second_step_says_it_again():
    reg, maml = tr.TRLearner(tr.LabelledEncoder(None, dim=4)), learner(Attention(), "loop")
    for _ in range(2):
        loss = reg(maml, BATCH).loss
        with pytest.raises(RuntimeError, match=CASES[Attention]):
            loss.backward()


@pytest.mark.parametrize("engine", ["loop", "batched", "higher"])
@pytest.mark.parametrize("run", [whole_step, adapting])
def test_both_fixes_work(engine: str, run):
    model = Attention()
    run(model, engine, first_order=True)
    first = model.body.weight.grad
    model = Attention()
    with sdpa_kernel(SDPBackend.MATH):
        run(model, engine)
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in (first, model.body.weight.grad))


def test_what_needs_no_second_derivative_is_left_alone():
    """ANIL does not adapt the attention; and who only looks at predictions never goes backward."""
    model = Attention()
    anil = tr.ANIL(model, head="head", steps=1, engine="loop")
    anil.adapt(BATCH.support, F.mse_loss)(X).sum().backward()
    assert model.body.weight.grad is not None
    seen = learner(Attention(), "loop").adapt(BATCH.support, F.mse_loss)(X)
    assert seen.isfinite().all()
