"""The doctor names each layer that will not work, says how to mend it, and is right about both."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import trlearner as tr
from trlearner.diagnostics.doctor.explain import explain

TASKS, SAMPLES, WIDTH = 3, 6, 4
TOGETHER = ("batched", "compiled")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def batch_of(outputs: int = 1, mask: Tensor | None = None) -> tr.TaskBatch:
    def part() -> tr.Samples:
        return tr.Samples(
            torch.randn(TASKS, SAMPLES, 2), torch.randn(TASKS, SAMPLES, outputs), mask
        )

    return tr.TaskBatch(part(), part())


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, WIDTH), *middle, nn.Linear(WIDTH, 1))


def step(model: nn.Module, engine: str, **options: object) -> Exception | None:
    """What a real second-order step says on its way through an engine, if anything."""
    learner = tr.MAML(copy.deepcopy(model), lr=0.1, steps=1, engine=engine, **options)
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2), loss_fn=F.mse_loss, lam=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reg(learner, batch_of()).loss.backward()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return error
    return None


# ---- one broken layer ---------------------------------------------------------------------------


class Own(nn.Module):
    """A layer whose forward is a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.number = torch.tensor(3.0)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x @ self.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (2, 2))
        return self.inner(query=h, key=h, value=h, need_weights=False)[0].flatten(-2)


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = cell(2, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unflatten(-1, (2, 2)))[0].flatten(-2)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].exp()


def overwriting(layer: nn.Module, x: Tensor) -> Tensor:
    y = x.exp()
    return y.sin() + y.add_(1).square()


def clamping(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.clamp_(-1, 1)
    return x * layer.weight.sum()


def averaging(layer: nn.Module, x: Tensor) -> Tensor:
    layer.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return x - layer.mean


def assigning(layer: nn.Module, x: Tensor) -> Tensor:
    layer.mean = 0.9 * layer.mean + 0.1 * x.detach().mean(0)
    return x - layer.mean


def checkpointing(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(
        lambda h: (h @ layer.weight).tanh(), x, use_reentrant=False
    )


def spectral(frozen: bool = False) -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
    return layer.eval() if frozen else layer


def own(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Own(function)


def attending(layer: nn.Module, x: Tensor) -> Tensor:
    h = x[:, None, :, None]
    return F.scaled_dot_product_attention(h, h, h).flatten(1)


@dataclass
class Case:
    """A layer, what is said of it, and the same layer mended."""

    broken: Callable[[], nn.Module]
    problem: str
    fix: str
    engines: tuple[str, ...] = ()  # none but these; all if empty
    layer: str = "1"
    mended: Callable[[], nn.Module] | None = None
    around: Callable[[], object] = contextlib.nullcontext


def math_kernel() -> object:
    return sdpa_kernel(SDPBackend.MATH)


CASES = {
    "attention": Case(
        Attention,
        "MultiheadAttention uses a fused attention kernel",
        "sdpa_kernel(torch.nn.attention.SDPBackend.MATH)",
        layer="1.inner",
        around=math_kernel,
    ),
    "attention in a forward": Case(
        own(attending), "Own uses a fused attention", "SDPBackend.MATH", around=math_kernel
    ),
    "cdist": Case(
        own(lambda m, x: torch.cdist(x, m.weight)),
        "Own calls torch.cdist, whose kernel for at most 25 rows",
        'compute_mode="use_mm_for_euclid_dist"',
        mended=own(
            lambda m, x: torch.cdist(x, m.weight, compute_mode="use_mm_for_euclid_dist")
        ),
    ),
    "in place": Case(
        own(overwriting),
        "Own overwrites in place",
        "`x = x + y`",
        mended=own(lambda m, x: x.exp().sin() + (x.exp() + 1).square()),
    ),
    "in place into another's": Case(
        lambda: nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True)),
        "ReLU overwrites in place",
        "inplace=False",
        layer="1.1",
        mended=lambda: nn.Sequential(nn.Tanh(), nn.ReLU()),
    ),
    "in place into a parameter": Case(
        own(clamping),
        "Own writes into its parameter 'weight' in place",
        "self.weight.clamp(-1, 1)",
        mended=own(lambda m, x: x * m.weight.clamp(-1, 1).sum()),
    ),
    "lstm": Case(
        lambda: Recurrent(nn.LSTM), "LSTM is a recurrent", "cudnn.flags", TOGETHER, "1.inner"
    ),
    "gru": Case(
        lambda: Recurrent(nn.GRU), "GRU is a recurrent", "cudnn.flags", TOGETHER, "1.inner"
    ),
    "branch": Case(
        own(lambda m, x: x if x.sum() > 0 else -x),
        "Own branches on the values",
        "torch.where",
        TOGETHER,
        mended=own(lambda m, x: torch.where(x.sum() > 0, x, -x)),
    ),
    "item": Case(
        own(lambda m, x: x * x.mean().item()),
        "Own reads a number out of a tensor",
        "keep it a tensor",
        TOGETHER,
        mended=own(lambda m, x: x * x.mean()),
    ),
    "boolean mask": Case(
        own(lambda m, x: x * x[x > 0].sum()),
        "Own selects by the values",
        "torch.where",
        TOGETHER,
        mended=own(lambda m, x: x * torch.where(x > 0, x, 0.0).sum()),
    ),
    "spectral norm": Case(
        spectral, "SpectralNorm writes into a buffer", ".eval()", TOGETHER, mended=lambda: spectral(True)
    ),
    "buffer in place": Case(
        own(averaging), "Own writes what differs", "0.9 * self.mean", TOGETHER
    ),
    "checkpointing": Case(
        own(checkpointing),
        "Own keeps tensors beyond its call",
        "without torch.utils.checkpoint",
        TOGETHER,
        mended=own(lambda m, x: (x @ m.weight).tanh()),
    ),
    "a tensor of its own": Case(
        own(lambda m, x: x * m.number),
        "Own uses a tensor that is neither",
        "register_buffer",
        ("compiled",),
        mended=own(lambda m, x: x + m.mean),
    ),
    "a branch on a buffer": Case(
        own(lambda m, x: x if m.mean.sum() == 0 else -x),
        "Own reads values out of a tensor",
        "engine='batched'",
        ("compiled",),
    ),
}  # fmt: skip
FIRST = ("attention in a forward", "in place", "in place into a parameter", "lstm", "branch")
"""One of each kind of problem; the others are left to `make test-all`."""


@pytest.mark.parametrize("name", [*FIRST, *later(*(name for name in CASES if name not in FIRST))])
def test_a_broken_layer_is_found(name: str):
    case = CASES[name]
    diagnosis = tr.doctor(net(case.broken()), batch_of())
    (found,) = diagnosis
    assert found.layer == case.layer
    assert found.problem.startswith(case.problem), found
    assert case.fix in found.fix, found
    assert found.kind == ("slow" if case.engines else "fails")
    assert found.engines == (
        case.engines or ("higher", "loop", "channels_last", "batched", "compiled")
    )
    assert diagnosis.ok == bool(case.engines)


@pytest.mark.full
@pytest.mark.unchecked
@pytest.mark.parametrize("name", CASES)
def test_what_is_said_of_it_is_true(name: str):
    """And what is not said, as well: the engines that are not named can run it."""
    case = CASES[name]
    model = net(case.broken())
    engines = case.engines or ("loop", "batched", "compiled")
    for engine in ("loop", "batched", "compiled"):
        error = step(model, "traced" if engine == "compiled" else engine)
        assert (error is not None) == (engine in engines), (engine, error)


@pytest.mark.full
@pytest.mark.unchecked
@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if c.mended or c.around is not contextlib.nullcontext]
)
def test_the_fix_mends_it(name: str):
    case = CASES[name]
    model = net((case.mended or case.broken)())
    with case.around():
        fixed = tr.doctor(model, batch_of())
        assert [f for f in fixed if f.kind != "note"] == []
        for engine in ("loop", "batched", "traced"):
            assert step(model, engine) is None


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.engines])
def test_first_order_needs_no_second_derivative(name: str):
    found = tr.doctor(tr.MAML(net(CASES[name].broken()), first_order=True), batch_of())
    assert found.ok == ("in place" not in name), str(found)


LAYERS = {
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "mish": lambda: nn.Mish(),
    "rrelu": lambda: nn.RReLU(),
    "pdist": own(lambda m, x: torch.pdist(x).sum() * x),
    "unique": own(lambda m, x: x * x.unique().sum()),
    "data": own(lambda m, x: x * x.data.mean()),
    "assigned rows": own(lambda m, x: torch.zeros(len(x), WIDTH).index_copy(0, torch.arange(6), x)),
    "assigned in place": own(lambda m, x: torch.zeros(len(x), WIDTH).copy_(x)),
    "eigenvalues": own(lambda m, x: torch.linalg.eigvalsh(x.T @ x).sum() * x),
    "grid sample": own(lambda m, x: F.grid_sample(x[:, None, None], torch.zeros(6, 2, 2, 2)).flatten(1)),
    "upsampling": own(lambda m, x: F.interpolate(x[:, None], size=4, mode="linear")[:, 0]),
    "gru cell": lambda: nn.GRUCell(WIDTH, WIDTH),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.unchecked
@pytest.mark.parametrize("name", LAYERS)
def test_the_verdict_is_what_the_engines_say(name: str):
    """Of layers chosen for being odd, not for being known to the doctor."""
    model = net(LAYERS[name]())
    said = {engine for f in tr.doctor(model, batch_of()) for engine in f.engines}
    for engine in ("loop", "batched", "compiled"):
        error = step(model, "traced" if engine == "compiled" else engine)
        assert (engine in said) == (error is not None), (engine, error)


def test_a_function_that_differentiates_once():
    """torch.autograd.grad would silently leave its part out; backward() raises."""
    model = net(Own(lambda m, x: Once.apply(x)))
    fails, slow = tr.doctor(model, batch_of())
    assert (fails.layer, fails.kind, slow.layer, slow.kind) == ("1", "fails", "1", "slow")
    assert "only once" in fails.problem and "@once_differentiable" in fails.fix
    assert "torch.vmap cannot run" in slow.problem and "generate_vmap_rule" in slow.fix
    assert "twice" in str(step(model, "loop")) and "setup_context" in str(step(model, "batched"))


@pytest.mark.full
def test_a_transformer_layer_in_evaluation_mode():
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[:, None]).flatten(1)

    model = net(Sequence()).eval()
    (fails,) = tr.doctor(model, batch_of())
    assert fails.layer == "1.layer.self_attn" and "SDPBackend.MATH" in fails.fix
    with math_kernel():
        assert len(tr.doctor(model, batch_of())) == 0
        assert step(model, "loop") is None and step(model, "batched") is None


@pytest.mark.full
def test_old_spectral_norm_does_its_work_in_a_hook():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = net(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)))
    model(torch.randn(2, 2))  # leaves a weight behind that copy.deepcopy refuses
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("1", "slow")


@pytest.mark.full
def test_a_compiled_model():
    model = torch.compile(net(nn.Tanh()), backend="aot_eager")
    found, slow = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("(model)", "fails") and "_orig_mod" in found.fix
    assert slow.engines == ("compiled",) and "cannot be traced once more" in slow.problem
    assert "double backward" in str(step(model, "loop"))
    assert tr.doctor(model._orig_mod, batch_of()).ok


def test_an_unknown_error_is_quoted():
    found = explain("a.b", "Odd", "vmap", RuntimeError("never heard of\nmore"))
    assert found.problem == "Odd cannot run under torch.vmap: RuntimeError: never heard of"
    assert (found.kind, found.engines) == ("slow", TOGETHER)
    found = explain(
        "a", "Odd", "second", RuntimeError("derivative for aten::odd is not implemented")
    )
    assert found.problem == "Odd uses aten::odd, through which torch has no further derivative."
    assert found.fix == "compute it by other operations, or use first_order=True."


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not "
            "supported for CuDNN RNNs due to limitations in the CuDNN API.",
            "torch.backends.cudnn.flags(enabled=False)",
        ),
        ("cudnn RNN backward can only be called in training mode", "cudnn.flags(enabled=False)"),
        (
            "derivative for aten::_scaled_dot_product_efficient_attention_backward is not implemented",
            "SDPBackend.MATH",
        ),
        ("torch.compile with aot_autograd does not currently support double backward", "_orig_mod"),
    ],
)
def test_what_only_a_gpu_or_a_compiler_says_is_known(error: str, fix: str):
    assert fix in explain("rnn", "LSTM", "second", RuntimeError(error)).fix


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN runs on a GPU only")
def test_cudnn_recurrent_layers():
    model, batch = net(Recurrent(nn.LSTM)).cuda(), batch_of().to("cuda")
    found = {f.kind: f for f in tr.doctor(model, batch)}
    assert found["fails"].layer == "1.inner" and "cudnn.flags(enabled=False)" in found["fails"].fix
    with torch.backends.cudnn.flags(enabled=False):
        assert tr.doctor(model, batch).ok


# ---- many layers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        net(nn.ReLU(), nn.Dropout(0.3), nn.LayerNorm(WIDTH)),
        net(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
        *later(
            net(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.GELU()),
            net(nn.GroupNorm(2, WIDTH), nn.SiLU()).double(),
        ),
    ],
    ids=["dropout", "in-place relu", "weight norm", "double"],
)
def test_a_healthy_model_has_no_findings(model: nn.Module):
    batch = batch_of().to(next(model.parameters()).dtype)
    diagnosis = tr.doctor(model, batch)
    assert list(diagnosis) == [] and diagnosis.ok
    assert str(diagnosis).startswith("ok: nothing found in ")


@pytest.mark.full
def test_all_broken_layers_are_found_at_once():
    model = net(
        Attention(),
        Own(lambda m, x: torch.cdist(x, m.weight)),
        Own(lambda m, x: x if x.sum() > 0 else -x),
        spectral(),
        Attention(),
        Own(lambda m, x: x * m.number),
    )
    diagnosis = tr.doctor(model, batch_of())
    found = {f.layer: f.kind for f in diagnosis}
    assert found == {
        "1.inner": "fails", "5.inner": "fails", "2": "fails", "3": "slow", "4": "slow", "6": "slow"
    }  # fmt: skip
    assert len(diagnosis) == 6
    text = str(diagnosis)
    assert text.startswith("not ok: 3 fail, 3 slow, in ")
    assert "1. fails: 1.inner, 5.inner\n" in text and "slow: 6 (compiled)" in text


@pytest.mark.full
def test_a_composite_answers_for_its_own_forward_only():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention()

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return h if h.sum() > 0 else 2 * h

    first, second = tr.doctor(net(Outer()), batch_of())
    assert (first.layer, second.layer) == ("1.inner.inner", "1")
    assert "fused attention" in first.problem and second.problem.startswith("Outer branches")


def test_the_model_itself_and_the_loss_have_names():
    class Whole(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.mean().item()

    def loss_fn(p: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(p, y).mean()

    loss, model = tr.doctor(Whole(2, 1), batch_of(), loss_fn)
    assert (model.layer, model.kind) == ("(model)", "slow") and "Whole reads" in model.problem
    assert (loss.layer, loss.kind) == ("loss_fn", "fails") and "The loss calls" in loss.problem


@pytest.mark.full
def test_a_shared_layer_is_named_once_with_all_its_names():
    model = net(Attention(), nn.Tanh())
    model.append(nn.Identity())
    model.insert(2, model[1])
    (found,) = tr.doctor(model, batch_of())
    assert found.layer == "1.inner (also 2.inner)"


@pytest.mark.full
def test_each_call_of_a_shared_layer_is_tried():
    """The second call only is small enough for the kernel without a second derivative."""

    class Distances(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cdist(x, y)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distances = Distances()

        def forward(self, x: Tensor) -> Tensor:
            large = self.distances(x.repeat(10, 1), x.repeat(10, 1)).mean()
            return x * (large + self.distances(x, y=x).mean())

    (found,) = tr.doctor(net(Twice()), batch_of())
    assert found.layer == "1.distances"


# ---- what belongs to the user -------------------------------------------------------------------


@pytest.mark.full
def test_nothing_is_changed():
    model = net(Own(averaging), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), Attention(), spectral())
    model[3].eval()
    temperature = nn.Parameter(torch.ones(()))

    def loss_fn(p: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p * temperature, y)

    loss_fn(model(torch.randn(5, 2)), torch.zeros(5, 1)).backward()
    batch = batch_of()
    held = [*model.parameters(), temperature, batch.support.x, batch.query.y]
    before = [t.detach().clone() for t in held]
    gradients = [t.grad if t.grad is None else t.grad.clone() for t in held]
    state = copy.deepcopy(model.state_dict())
    attributes = [(path, dict(vars(m))) for path, m in model.named_modules()]
    versions, random = [t._version for t in held], torch.get_rng_state()
    filters, hooks = list(warnings.filters), [len(m._forward_hooks) for m in model.modules()]
    tr.doctor(model, batch, loss_fn)
    assert torch.equal(torch.get_rng_state(), random) and warnings.filters == filters
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))
    assert [t._version for t in held] == versions
    for t, gradient in zip(held, gradients, strict=True):
        assert (t.grad is None) if gradient is None else torch.equal(t.grad, gradient)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert [(path, dict(vars(m))) for path, m in model.named_modules()] == attributes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_writing_into_the_batch_is_found_and_not_done(layer: nn.Module):
    batch = batch_of()
    before = batch.support.x.clone()
    (found,) = tr.doctor(nn.Sequential(layer, nn.Linear(2, 1)), batch)
    assert (found.layer, found.kind) == ("0", "fails")
    assert "writes into the batch's inputs in place" in found.problem
    assert "inplace=False" in found.fix
    assert torch.equal(batch.support.x, before)
    # It is true: engine batched passes a view of the batch.
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(2, 1))
    with contextlib.suppress(RuntimeError):
        tr.MAML(model, engine="batched").adapt(batch.support, F.mse_loss)
    assert not torch.equal(batch.support.x, before)


@pytest.mark.full
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode: Callable):
    model, batch = net(Attention()), batch_of()
    with mode():
        inside = tr.doctor(model, batch)
    assert inside == tr.doctor(model, batch)
    assert [f.layer for f in inside] == ["1.inner"]


# ---- notes --------------------------------------------------------------------------------------


@pytest.mark.full
def test_batchnorm_is_noted_and_slow_where_tasks_are_masked():
    (note,) = tr.doctor(net(nn.BatchNorm1d(WIDTH)), batch_of())
    assert (note.layer, note.kind) == ("1", "note") and "other samples" in note.problem
    mask = torch.ones(TASKS, SAMPLES, dtype=torch.bool)
    mask[0, 4:] = False
    (slow,) = tr.doctor(net(nn.BatchNorm1d(WIDTH)), batch_of(mask=mask))
    assert (slow.layer, slow.kind) == ("1", "slow") and "GroupNorm" in slow.fix
    assert len(tr.doctor(net(nn.GroupNorm(2, WIDTH)), batch_of(mask=mask))) == 0


@pytest.mark.full
def test_batchnorm_in_evaluation_mode_without_statistics():
    model = net(nn.BatchNorm1d(WIDTH)).eval()
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("1", "fails") and ".train()" in found.fix
    assert "never updated" in str(step(model, "loop"))
    model.train()(torch.randn(8, 2))
    assert len(tr.doctor(model.eval(), batch_of())) == 0


def test_buffers_that_the_forward_updates_are_noted():
    model = net(Own(assigning))
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("1", "note") and "its buffer 'mean'" in found.problem
    assert step(model, "batched") is None


@pytest.mark.full
def test_convolutions_that_adapt_on_a_cpu():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(2, 1)
    )
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind, found.engines) == ("1", "slow", TOGETHER)
    learner = tr.MAML(model)
    # This one is small, so that it matters little.
    assert learner.adapt(batch_of().support, F.mse_loss).engine == "batched"
    assert len(tr.doctor(tr.ANIL(model, head="3"), batch_of())) == 0


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.spare = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        self.cut = nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh() + self.cut(x).detach())


def test_parameters_without_a_gradient():
    model = Parts()
    model.body.requires_grad_(False)
    cut, *others = tr.doctor(model, batch_of())
    assert (cut.layer, cut.kind) == ("cut", "fails")
    assert "no gradient of the loss reaches weight, bias" in cut.problem and ".detach()" in cut.fix
    assert [(f.layer, f.kind) for f in others] == [("spare", "note"), ("body", "note")]
    assert "never runs" in others[0].problem and "weight, bias frozen" in others[1].problem
    learner = tr.MAML(model)
    F.mse_loss(
        learner.adapt(batch_of().support, F.mse_loss)(batch_of().query.x), batch_of().query.y
    ).backward()
    assert all(
        p.grad is None or p.grad.abs().max() == 0
        for p in (*model.cut.parameters(), *model.spare.parameters())
    )


def test_many_frozen_layers_are_one_note():
    """As in fine-tuning by low-rank adapters, which freeze all but a few numbers."""
    model = net(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
    model[:4].requires_grad_(False)
    (found,) = tr.doctor(model, batch_of())
    assert (found.layer, found.kind) == ("(model)", "note")
    assert "60 of 65 numbers frozen in 4 layers (0, 1, 2, ...), which" in found.problem


@pytest.mark.full
def test_tied_weights_are_no_obstacle():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 1))
    model[2].weight = model[0].weight
    assert len(tr.doctor(model, batch_of())) == 0


# ---- learners -----------------------------------------------------------------------------------


@pytest.mark.full
def test_anil_needs_second_derivatives_in_its_head_only():
    model = net(Attention())
    assert len(tr.doctor(tr.ANIL(model, head="2"), batch_of())) == 0
    (found,) = tr.doctor(
        tr.ANIL(nn.Sequential(nn.Linear(2, WIDTH), Attention()), head="1"), batch_of(WIDTH)
    )
    assert found.layer == "1.inner"


@pytest.mark.full
def test_anil_blames_its_head_and_not_its_body():
    head = nn.Sequential(Attention(), Own(lambda m, x: x if x.sum() > 0 else -x))
    model = nn.Sequential(
        nn.Linear(2, WIDTH), Attention(), Own(lambda m, x: x if x.sum() > 0 else -x), head
    )
    found = tr.doctor(tr.ANIL(model, head="3"), batch_of(WIDTH))
    assert {f.layer: f.engines for f in found} == {
        "3.0.inner": ("higher", "loop", "channels_last", "batched", "compiled"),
        "3.1": TOGETHER,
        "2": ("compiled",),
    }


@pytest.mark.full
def test_protonet_needs_no_second_derivative():
    y = torch.arange(SAMPLES).repeat(TASKS, 1) % 2
    x = torch.randn(TASKS, SAMPLES, 2)
    batch = tr.TaskBatch((x, y), (x, y), ways=2)
    assert len(tr.doctor(tr.ProtoNet(nn.Sequential(nn.Linear(2, WIDTH), Attention())), batch)) == 0


@pytest.mark.full
@pytest.mark.parametrize("kind", [tr.MetaSGD, tr.TNet])
def test_other_learners(kind: type):
    (found,) = tr.doctor(kind(net(Attention(), nn.Tanh()), steps=3), batch_of())
    assert found.layer == "1.inner"


@pytest.mark.full
def test_tokens_and_classes():
    x, y = torch.randint(7, (TASKS, SAMPLES, 3)), torch.randint(2, (TASKS, SAMPLES))
    batch = tr.TaskBatch((x, y), (x, y), ways=2)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    assert len(tr.doctor(model, batch)) == 0
    (found,) = tr.doctor(
        nn.Sequential(nn.Embedding(7, 4), nn.LSTM(4, 4, batch_first=True), Last()), batch
    )
    assert (found.layer, found.kind) == ("1", "slow")


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, found: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
        return self.out(found[1][0][0])


# ---- what cannot run at all ---------------------------------------------------------------------


@pytest.mark.full
def test_a_forward_that_raises_is_reported_with_what_came_before_it():
    model = nn.Sequential(nn.Linear(2, WIDTH), Attention(), nn.Linear(3, 1), nn.LSTM(1, 1))
    raised, broken, *rest = tr.doctor(model, batch_of())
    assert (raised.layer, raised.kind) == ("2", "fails")
    assert "Linear fails in its forward: RuntimeError: mat1 and mat2" in raised.problem
    assert "make model(x) run" in raised.fix
    assert broken.layer == "1.inner" and not rest


@pytest.mark.unchecked
def test_a_model_that_returns_a_tuple():
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    (found,) = tr.doctor(Two(2, 1), batch_of())
    assert found.kind == "fails" and "must return one tensor, got tuple" in found.problem


def test_a_loss_of_many_numbers():
    (found,) = tr.doctor(net(), batch_of(), lambda p, y: (p - y).square())
    assert found.kind == "fails" and "loss_fn must return a scalar" in found.problem


@pytest.mark.parametrize("model", [nn.Tanh(), net().requires_grad_(False)])
def test_a_model_without_anything_to_adapt(model: nn.Module):
    found = next(iter(tr.doctor(model, batch_of(2 if isinstance(model, nn.Tanh) else 1))))
    assert (found.layer, found.kind) == ("(model)", "fails")
    assert "no parameter that could adapt" in found.problem


def test_a_lazy_layer():
    (found,) = tr.doctor(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1)), batch_of())
    assert (found.layer, found.kind) == ("0", "fails") and "call the model once" in found.fix


@pytest.mark.unchecked
def test_what_is_no_model_no_batch_or_no_loss_is_refused():
    model, batch = net(), batch_of()
    with pytest.raises(TypeError, match=r"model must be an nn\.Module or a learner, got str\."):
        tr.doctor("net", batch)
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2))
    with pytest.raises(TypeError, match=r"got TRLearner\. Pass the network"):
        tr.doctor(reg, batch)
    with pytest.raises(TypeError, match="batch must be a TaskBatch, got tuple.*support="):
        tr.doctor(model, (batch.support, batch.query))
    with pytest.raises(TypeError, match="loss_fn must be a function.*got str"):
        tr.doctor(model, batch, "mse")

    class Single(nn.Linear):
        def __deepcopy__(self, memo: dict) -> nn.Module:
            raise RuntimeError("there can be only one")

    with pytest.raises(ValueError, match="must be copyable.*there can be only one"):
        tr.doctor(Single(2, 1), batch)


# ---- samples that see each other, embeddings, gradients that are not finite ----------------------


class Sequence(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        query = isinstance(self.layer, nn.MultiheadAttention)
        return self.last((self.layer(x, x, x) if query else self.layer(x))[0])


@pytest.mark.parametrize(
    "layer", [nn.LSTM(2, 2), *later(nn.MultiheadAttention(2, 1, batch_first=True))]
)
def test_a_layer_that_takes_samples_for_time_is_named(layer: nn.Module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [f for f in tr.doctor(Sequence(layer), batch_of()) if f.kind == "note"]
    (note,) = found
    assert note.layer == "layer" and "samples of a task for steps of one sequence" in note.problem
    assert "batch_first=True" in note.fix


def words() -> tr.TaskBatch:
    x, y = torch.randint(0, 4, (TASKS, SAMPLES, 3)), torch.randn(TASKS, SAMPLES, 2)
    return tr.TaskBatch((x, y), (x, y))


@pytest.mark.parametrize(
    ("make", "kind", "problem"),
    [
        (lambda: nn.Embedding(4, 2, padding_idx=0), None, ""),
        (lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), "fails", "leaves out of second"),
        (lambda: nn.Embedding(4, 2, max_norm=0.1), "fails", "writes into its parameter 'weight'"),
        (lambda: nn.Embedding(4, 2, sparse=True), "slow", "has sparse gradients"),
        (lambda: nn.EmbeddingBag(4, 2), "fails", "is an embedding bag, which has no second"),
    ],
)
def test_embeddings(make: Callable[[], nn.Module], kind: str | None, problem: str):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = make()

        def forward(self, x: Tensor) -> Tensor:
            rows = self.table(x)
            return (rows if rows.ndim == 2 else rows.sum(1)).tanh()

    found = tr.doctor(Words(), words())
    if kind is None:
        assert not found
    else:
        assert (found[0].layer, found[0].kind) == ("table", kind) and problem in found[0].problem


@pytest.mark.parametrize("odd", [True, *later(False)])
def test_a_pooling_layer_without_a_finite_gradient_is_named(odd: bool):
    """A cube root of a negative sum is NaN, a square root of zero has no finite derivative."""
    pool = nn.LPPool1d(3 if odd else 2, 2)
    middle = [] if odd else [nn.Threshold(100.0, 0.0)]
    model = nn.Sequential(nn.Linear(2, 4), *middle, pool, nn.Linear(2, 1))
    (found,) = tr.doctor(model, batch_of())
    assert found.layer == str(len(middle) + 1) and found.kind == "fails"
    assert found.problem == "LPPool1d has outputs or gradients that are not finite on this batch."
    assert "average pooling" in found.fix
    model[len(middle) + 1] = nn.AvgPool1d(2)
    assert all(f.layer != found.layer for f in tr.doctor(model, batch_of()))


def test_inner_steps_that_explode_are_the_steps_fault():
    learner = tr.MAML(net(), lr=1e30, steps=3)
    (found,) = tr.doctor(learner, batch_of())
    assert found.layer == "(meta-step)" and "not finite" in found.problem
