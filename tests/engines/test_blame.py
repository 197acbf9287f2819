"""A failed step names the user's mistake where there is one, whatever engine ran."""

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.nn import functional as F

import trlearner as tr

ENGINES = ("auto", "tune", "loop", "batched", "higher", "traced")
X, Y = torch.rand(3, 5, 3), torch.rand(3, 5, 1)


class Net(nn.Module):
    def __init__(self, inputs: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, 4)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class Pair(Net):
    def forward(self, x: Tensor):
        return super().forward(x), x


class Pooled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0)


def step(model: nn.Module, x: Tensor, y: Tensor, engine: str, loss_fn=F.mse_loss) -> None:
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4), loss_fn=loss_fn)
    reg(tr.MAML(model, steps=1, engine=engine), tr.TaskBatch((x, y), (x, y)))


def adapt(model: nn.Module, x: Tensor, y: Tensor, engine: str, loss_fn=F.mse_loss) -> None:
    tr.MAML(model, steps=1, engine=engine).adapt((x, y), loss_fn)


BODY = r"batch\.support\.x does not fit the model: its layer 'body' \(Linear\) takes"
DATA = {
    "double": (Net, X.double(), rf"{BODY} torch.float32, .* got torch.float64 \[5, 3\]"),
    "whole": (Net, X.long(), rf"{BODY} torch.float32, .* got torch.int64 \[5, 3\].*x.to\("),
    "width": (Net, X[..., :2], rf"{BODY} 3 features .*in_features=3\), .* \[5, 2\] on cpu"),
    "inside": (lambda: Net(hidden=6), X, r"layer 'head' \(Linear\) takes 6 features .* \[5, 4\]"),
    "device": (lambda: Net().to("meta"), X, rf"{BODY} inputs on meta, .* on cpu .*batch.to\('meta'\)"),
    "pair": (Pair, X, r"what the model returns, several tensors .* name it: output=0"),
    "pooled": (Pooled, X, r"the model must return predictions \[samples, ...\] with samples = 5"),
}  # fmt: skip


@pytest.mark.unchecked
@pytest.mark.parametrize("run", [step, *later(adapt)])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_fit_the_model_are_blamed_on_neither_engine_nor_graph(case, engine, run):
    model, x, text = DATA[case]
    with pytest.raises(
        (ValueError, TypeError), match=text
    ) as caught:  # a warning would be an error
        run(model(), x, Y, engine)
    assert "engine" not in str(caught.value) and "Inductor" not in str(caught.value)


LOSSES = {
    "type": (lambda p, t: p[:, 0].dot(t[:, 0].double()), r"loss_fn fails on one task's .*same dtype"),
    "label": (lambda p, t: F.cross_entropy(p, t[:, 0].long() + 1), r"loss_fn fails.*Target 1 is out"),
    "shape": (lambda p, t: (p @ t).mean(), r"predictions, torch.float32 \[5, 1\], and targets, .*\[5, 1\]"),
    "scalar": (lambda p, t: p - t, r"loss_fn must return a scalar"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_that_fails_on_one_task_is_named(case: str, engine: str):
    loss_fn, text = LOSSES[case]
    with pytest.raises((ValueError, RuntimeError, IndexError), match=text) as caught:
        step(Net(), X, Y, engine, loss_fn)
    assert "engine" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_of_the_users_own_stays_as_it_is(engine: str):
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.missing(x)

    with pytest.raises(AttributeError, match="'Broken' object has no attribute 'missing'"):
        step(Broken(), X, Y, engine)


def test_whole_numbers_for_an_embedding_are_told_their_range():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 1))
    x = (5 * torch.ones(3, 5, 3)).long()
    with pytest.raises(ValueError, match=r"layer '0' \(Embedding\) takes numbers from 0 to 3"):
        adapt(model, x, Y, "auto")
    with pytest.raises(ValueError, match=r"layer '0' \(Embedding\) takes whole numbers"):
        adapt(model, X, Y, "auto")


def test_queries_that_do_not_fit_are_named_as_such():
    batch = tr.TaskBatch((X, Y), (X.double(), Y.double()))
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4))
    with pytest.raises(ValueError, match=r"batch\.query\.x does not fit the model"):
        reg(tr.MAML(Net(), steps=1), batch)
    adapted = tr.MAML(Net(), steps=1).adapt((X, Y), F.mse_loss)
    for ask in (adapted, adapted.cross):
        with pytest.raises(ValueError, match=r"batch\.query\.x does not fit the model"):
            ask(X[..., :2])


@pytest.mark.parametrize("learner", [tr.ProtoNet, lambda model: tr.ANIL(model, head="head")])
def test_other_learners_name_the_layer_as_well(learner):
    y = torch.arange(5).repeat(3, 1) % 2
    batch = tr.TaskBatch((X.double(), y), (X.double(), y), ways=2)
    with pytest.raises(ValueError, match=BODY):
        learner(Net()).adapt(batch.support, F.cross_entropy)


def test_looking_for_a_mistake_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(2, 1))
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match="layer '2'"):
        adapt(model, X, Y, "loop")
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.equal(torch.get_rng_state(), state)  # dropout drew in the step that failed


def test_a_sampler_does_not_hide_the_mistake():
    class Late(Net):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double() if self.broken else x)

    sampler = tr.AdaptiveTaskSampler(range(3), 3, every=1, warmup=0)
    learner, batch = (
        tr.MAML(Late(), steps=1, engine="batched"),
        tr.TaskBatch((X, Y), (X, Y), ids=range(3)),
    )
    sampler.update(learner, batch)
    Late.broken = True
    with pytest.raises(ValueError, match=r"layer 'body' \(Linear\) takes torch.float32"):
        sampler.update(learner, batch)
