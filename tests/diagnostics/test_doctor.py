"""The doctor names each layer that will not work, says how to mend it, and is right about both."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from contracts import later
from patients import (
    TOGETHER,
    WIDTH,
    Attention,
    Once,
    Own,
    Recurrent,
    attending,
    averaging,
    batch_of,
    checkpointing,
    clamping,
    math_kernel,
    net,
    overwriting,
    own,
    spectral,
    step,
)
from torch import Tensor, nn
from torch.nn import functional as F

import trlearner as tr
from regularizer.test_nested import Words, batch, draw_words, of_words
from trlearner.diagnostics.doctor.explain import explain


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
    # Its fast path has no derivative; engine batched never takes it, whatever other layer is at fault.
    gate = Own(lambda m, x: x if x.sum() > 0 else -x)
    with math_kernel():
        assert [f.layer for f in tr.doctor(net(Sequence(), gate).eval(), batch_of())] == ["2"]
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


def test_a_model_of_several_inputs_and_outputs_is_looked_at_whole() -> None:
    model, tasks = Words().double(), batch(draw_words)
    assert tr.doctor(model, tasks, loss_fn=of_words).findings == ()
    wrong = Words()  # float32, where the numbers are double
    (finding,) = tr.doctor(wrong, tasks, loss_fn=of_words).findings
    assert finding.layer == "body" and "same dtype" in finding.problem
