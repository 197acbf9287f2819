"""Embeddings: every engine leaves the padding row alone, and treats the rest as a plain loop does."""

import functools
import warnings

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import trlearner as tr
from trlearner.engines.embedding import padded, padded_embeddings

TIGHT = {"rtol": 0.0, "atol": 1e-9}
TASKS, SAMPLES, WORDS = 3, 4, 5


class Words(nn.Module):
    """Adds up the rows of a few words, looked up by a layer or by a function."""

    def __init__(self, functional: bool = False, mixed: bool = False, **options: object) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 3, **options)
        self.rows = nn.Parameter(self.table.weight.detach().clone()) if functional else None
        self.head, self.mixed = nn.Linear(3, 1), mixed

    def forward(self, x: Tensor) -> Tensor:
        indices = x.long() if self.mixed else x
        if self.rows is None:
            found = self.table(indices)
        else:
            found = F.embedding(indices, self.rows, self.table.padding_idx)
        return self.head(found.sum(1).tanh())


def batch(mixed: bool = False) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, WORDS, (TASKS, 2 * SAMPLES, 4), generator=g)
    y = torch.randn(TASKS, 2 * SAMPLES, 1, generator=g, dtype=torch.float64)
    x = x.double() if mixed else x
    return tr.TaskBatch((x[:, :SAMPLES], y[:, :SAMPLES]), (x[:, SAMPLES:], y[:, SAMPLES:]))


def step(engine: str, tasks: tr.TaskBatch, first_order: bool = False, **options) -> list[Tensor]:
    """Loss, predictions and gradients of one meta-step."""
    torch.manual_seed(0)
    model = Words(**options).double()
    learner = tr.MAML(model, lr=0.3, steps=2, first_order=first_order, engine=engine)
    reg = tr.TRLearner(encoder=tr.UpdateEncoder(dim=4), lam=0.5, generator=torch.Generator())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # torch's, of max_norm
        out = reg.double()(learner, tasks)
    out.loss.backward()
    gradients = [p.grad if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    return [out.loss.detach(), out.predictions, *(g for g in gradients if g is not None)]


@functools.cache
def loop_step(mixed: bool, first_order: bool, *options: tuple[str, object]) -> list[Tensor]:
    """What every other engine is compared with."""
    return step("loop", batch(mixed), first_order, **dict(options))


@pytest.mark.parametrize("engine", ["batched", *later("higher", "traced", "auto")])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 0},
        {"padding_idx": -1},
        {"padding_idx": 2, "mixed": True},
        {"padding_idx": 2, "functional": True},
        {"max_norm": 0.5, "padding_idx": 3},
    ],
    ids=str,
)
def test_engines_agree(engine, first_order, options):
    mixed = bool(options.get("mixed"))
    found = step(engine, batch(mixed), first_order, **options)
    wanted = loop_step(mixed, first_order, *options.items())
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("engine", ["batched", *later("higher", "loop", "traced", "auto")])
def test_the_padding_row_neither_adapts_nor_learns(engine):
    model = Words(padding_idx=2).double()
    adapted = tr.MAML(model, lr=0.3, steps=2, engine=engine).adapt(batch().support, F.mse_loss)
    moved = adapted.fast["model.table.weight"] - model.table.weight
    assert moved[:, 2].abs().max() == 0 and moved.abs().amax((0, 2)).count_nonzero() == WORDS - 1
    adapted(batch().query.x).sum().backward()
    assert model.table.weight.grad[2].abs().max() == 0


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_sparse_gradients_run_one_task_after_the_other(engine):
    if engine == "auto":
        with pytest.warns(UserWarning, match="runs this learner with 'loop'"):
            found = step(engine, batch(), sparse=True)
    else:
        found = step(engine, batch(), sparse=True)
    for one, other in zip(found, step("loop", batch()), strict=True):
        assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("engine", ["batched", "traced"])
def test_gradients_by_frequency_are_refused_where_tasks_would_be_counted_together(engine):
    with pytest.raises(
        (NotImplementedError, RuntimeError), match="indices over all tasks together, so scale_grad"
    ):
        step(engine, batch(), scale_grad_by_freq=True)


def test_gradients_by_frequency_count_each_task_alone():
    """Also in the relation term, whose models are asked about several tasks."""
    options = {"scale_grad_by_freq": True, "padding_idx": 1}
    with pytest.warns(UserWarning, match="runs this learner with 'loop'"):
        found = step("auto", batch(), first_order=True, **options)
    torch.manual_seed(0)
    model = Words(**options).double()
    learner = tr.MAML(model, lr=0.3, steps=2, first_order=True, engine="loop")
    answers = learner.adapt(batch().support, F.mse_loss)
    assert_close(answers(batch().query.x), found[1], **TIGHT)
    each = [
        [answers(batch().query.x[[i]].expand(3, -1, -1))[j] for i in range(3)] for j in range(3)
    ]
    wanted = torch.stack([torch.stack(row) for row in each]).sin().sum()
    together = answers.cross(batch().query.x).sin().sum()
    gradients = [torch.autograd.grad(t, model.table.weight)[0] for t in (together, wanted)]
    assert_close(*gradients, **TIGHT)


@pytest.mark.parametrize("padding", [0, 1, -1, None])
@pytest.mark.parametrize("shared", [False, True])
def test_the_correction_is_what_one_table_after_the_other_does(padding, shared):
    torch.manual_seed(0)
    tables = torch.randn(3, WORDS, 2, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(0, WORDS, (6,) if shared else (3, 6))
    mapped = torch.vmap(lambda w, i: F.embedding(i, w, padding), (0, None if shared else 0))
    with padded_embeddings():
        found = mapped(tables, indices)
    each = [indices] * 3 if shared else indices
    wanted = torch.stack([F.embedding(i, w, padding) for i, w in zip(each, tables, strict=True)])
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad(t.sin().sum(), tables)[0] for t in (found, wanted)]
    assert_close(*gradients, **TIGHT)


def test_a_learner_without_padding_is_left_as_it_is():
    learner = tr.MAML(nn.Linear(2, 1))
    assert padded(learner, torch.ones(1, 2)) is learner
    other = tr.MAML(Words(padding_idx=0))
    assert padded(other, torch.ones(1, 2)) is not other
