"""Sequence layers that mix a task's samples are found, and every engine then asks task by task."""

import functools
import warnings

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

import trlearner as tr
from trlearner.base.functional import couples_samples
from trlearner.engines.coupling import depends

TIGHT = {"rtol": 0.0, "atol": 1e-9}
ENGINES = ("loop", "batched", *later("higher", "channels_last", "traced", "auto"))


class Model(nn.Module):
    """A sequence layer between two linear ones."""

    def __init__(self, layer: nn.Module, transpose: bool = False) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 4), layer, nn.Linear(4, 1)
        self.transpose = transpose

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h.transpose(0, 1) if self.transpose else h
        h = self.layer(h, h, h) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(h)
        h = h[0] if isinstance(h, tuple) else h
        h = h.transpose(0, 1) if self.transpose else h
        return self.last(h).flatten(1).mean(1, keepdim=True)


def attention(first: bool) -> nn.Module:
    return nn.MultiheadAttention(4, 2, batch_first=first)


def encoder(first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=first)


def lstm(first: bool) -> nn.Module:
    return nn.LSTM(4, 4, batch_first=first)


def gru(first: bool) -> nn.Module:
    return nn.GRU(4, 4, batch_first=first)


def batch(*sizes: int, masked: bool = False) -> tr.TaskBatch:
    """Three tasks of four samples ``[*sizes, 3]``."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, *sizes, 3, generator=g, dtype=torch.float64)
    y = torch.randn(3, 8, 1, generator=g, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]]) if masked else None
    support, query = (tr.Samples(x[:, s], y[:, s], mask) for s in (slice(4), slice(4, 8)))
    return tr.TaskBatch(support, query)


def made(layer: nn.Module, transpose: bool = False, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(layer, transpose).double()


def adapted(model: nn.Module, engine: str, support: tr.Samples) -> tr.Adapted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tr.MAML(model, lr=0.1, steps=1, engine=engine).adapt(support, mse_loss)


@pytest.mark.parametrize("make", [attention, encoder, lstm, gru])
@pytest.mark.parametrize(
    ("first", "transpose", "sizes", "coupled"),
    [
        (True, False, (5,), False),
        (False, True, (5,), False),
        (False, False, (5,), True),
        (True, True, (5,), True),
        (True, True, (4,), True),
        (True, False, (), True),
        (False, False, (), True),
    ],
)
def test_a_layer_mixes_samples_where_their_axis_is_its_time(make, first, transpose, sizes, coupled):
    torch.manual_seed(0)
    if transpose and not sizes:
        pytest.skip("two axes cannot be transposed")
    model = made(make(first), transpose)
    support = batch(*sizes).support
    before, state = list(model.modules()), torch.get_rng_state()
    learner = tr.MAML(model, engine="loop", steps=0)
    if coupled:
        with pytest.warns(UserWarning, match=r"layer.* takes them for steps of one sequence"):
            learner.adapt(support, mse_loss)
    else:
        learner.adapt(support, mse_loss)
    assert learner.couples_samples() == couples_samples(model) == coupled
    assert torch.equal(torch.get_rng_state(), state)
    assert [m._forward_pre_hooks for m in before] == [{} for _ in before]
    learner.adapt(support, mse_loss)  # silent from now on


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [attention, lstm])
@pytest.mark.parametrize("masked", [False, True])
def test_every_model_sees_each_task_alone(make, engine, masked):
    model, tasks = made(make(False)), batch(masked=masked)
    if masked and engine in ("batched", "traced"):
        with pytest.raises(ValueError, match="cannot drop masked samples from layers that couple"):
            adapted(model, engine, tasks.support)
        return
    if make is lstm and engine in ("batched", "traced"):
        pytest.skip("torch.vmap runs no recurrent layer")
    models = adapted(model, engine, tasks.support)
    answers = models.cross(tasks.query)
    for j in range(3):
        fast = {n.removeprefix("model."): t[j] for n, t in models.fast.items()}
        for i in range(3):
            x = tasks.query.real(i)[0]
            wanted = torch.func.functional_call(model, fast, (x,))
            assert_close(answers[j, i, : len(x)], wanted, **TIGHT)


@functools.cache
def term(engine: str, *options: tuple[str, object]) -> list[Tensor]:
    """The relation term and the gradients of a step."""
    torch.manual_seed(0)  # the layer is made before `made` seeds
    model, generator = made(attention(False)), torch.Generator().manual_seed(3)
    learner = tr.MAML(model, lr=0.1, steps=1, engine=engine)
    encoder = tr.UpdateEncoder(dim=4)
    reg = tr.TRLearner(encoder, generator=generator, **dict(options)).double()
    with pytest.warns(UserWarning, match="takes them for steps"):
        out = reg(learner, batch())
    out.loss.backward()
    return [out.relation_loss, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("options", [{}, {"queries": 0.5}, {"chunk_size": 1}, {"top_k": 1}])
@pytest.mark.parametrize("engine", ["batched", *later("traced", "auto")])
def test_the_relation_term_agrees_with_loop(engine, options):
    assert_close(term(engine, *options.items()), term("loop", *options.items()), **TIGHT)


@pytest.mark.filterwarnings("ignore:dim must be at least 2")
def test_an_extractor_of_its_own_is_examined_as_well():
    extractor = made(attention(False))
    reg = tr.TRLearner(encoder=tr.InputEncoder(extractor, dim=1)).double()
    learner = tr.MAML(nn.Linear(3, 1).double(), engine="loop", steps=0)
    with pytest.warns(UserWarning, match="layer takes them for steps"):
        found = reg.relate(learner, batch())
    with torch.no_grad():
        features = torch.stack([extractor(x).mean(0) for x in batch().support.x])
        wanted = tr.relation_matrix(features, reg.relation.weight)
    assert_close(found, wanted, **TIGHT)


def test_a_declared_layer_is_taken_at_its_word():
    model = made(attention(False))
    model.layer.couples_samples = True
    learner = tr.MAML(model, engine="loop", steps=0)
    learner.adapt(batch().support, mse_loss)
    assert learner.couples_samples()


def test_one_sample_tells_nothing_and_a_later_batch_may():
    model, support = made(lstm(False)), batch().support
    learner = tr.MAML(model, engine="loop", steps=0)
    learner.adapt((support.x[:, :1], support.y[:, :1]), mse_loss)
    assert not learner.couples_samples()
    with pytest.warns(UserWarning, match="takes them for steps"):
        learner.adapt(support, mse_loss)
    assert learner.couples_samples()


def test_a_sound_layer_is_not_blamed_for_what_another_does():
    class Centred(Model):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0))

    torch.manual_seed(0)
    learner = tr.MAML(Centred(attention(True)).double(), engine="loop", steps=0)
    learner.adapt(batch(5).support, mse_loss)
    assert not learner.couples_samples()  # unless it says so


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("by_frequency", [False, True])
def test_gradients_by_frequency_depend_on_the_other_samples(layer, by_frequency):
    assert couples_samples(layer(3, 2, scale_grad_by_freq=by_frequency)) is by_frequency


@pytest.mark.parametrize(
    ("run", "coupled"),
    [
        (torch.sin, False),
        (lambda x: x.cumsum(0), True),
        (lambda x: x.flip(0).cumsum(0).flip(0), True),
        (lambda x: x.softmax(0), True),
        (lambda x: nn.functional.dropout(x, 0.5), False),
    ],
)
def test_dependence_is_seen_from_either_end(run, coupled):
    assert depends(run, torch.arange(8.0).reshape(4, 2).sin()) is coupled
