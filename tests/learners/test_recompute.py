"""Inner steps that are computed again: what comes out is the same, and less is kept."""

import copy
import gc
import pickle
import weakref
from collections import OrderedDict
from typing import Any

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trlearner as tr
from engines.test_channels_last import batch as images
from trlearner.samplers.lookahead import lookahead, looking

AGAIN = ("loop", "channels_last", "batched")
TIGHT = 1e-9


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are still there, graph and all."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count((args, kwargs), made_here=False)
        found = func(*args, **(kwargs or {}))
        self._count(found, made_here=True)
        return found

    def _count(self, tree: Any, made_here: bool) -> None:
        for storage in (t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, Tensor)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes() if made_here else 0
                weakref.finalize(storage, self.sizes.pop, storage._cdata)


def both(make, batch: tr.TaskBatch, loss_fn=mse_loss, **options):  # type: ignore[no-untyped-def]
    """Loss, L_TR, M, meta-gradients and what is drawn next: with and without recompute."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        learner = make(recompute)
        encoder = tr.LabelledEncoder(None, dim=4, features=batch.support.x[0, 0].numel(), targets=3)
        generator = torch.Generator().manual_seed(0)
        reg = tr.TRLearner(encoder, loss_fn=loss_fn, lam=0.7, generator=generator, **options)
        out = reg.double()(learner, batch)
        out.loss.backward()
        gradients = {n: p.grad for m in (learner, reg) for n, p in m.named_parameters()}
        assert any(g is not None and g.abs().max() > 1e-8 for g in gradients.values())
        seen = {"loss": out.loss, "L_TR": out.relation_loss, "M": out.relations}
        found.append({**seen, **gradients, "next": torch.rand(3)})
    return found


def same(found: list[dict[str, Tensor | None]]) -> None:
    one, other = found
    for name in one:
        if one[name] is None:
            assert other[name] is None, name
        else:
            close(other[name], one[name], TIGHT)


@pytest.mark.full
@pytest.mark.parametrize("kind", [tr.MAML, tr.MetaSGD, tr.TNet, tr.ANIL])
@pytest.mark.parametrize("engine", AGAIN)
def test_images_norms_and_masks(engine: str, kind: type) -> None:
    """BatchNorm with a derivative of its own, alignment, chunks, unequal tasks."""
    masked = engine != "batched"

    def make(recompute: bool) -> tr.Learner:
        head = {"head": "head"} if kind is tr.ANIL else {}
        options = {"lr": 0.2, "steps": 3, "engine": engine, "recompute": recompute}
        layers = {
            "body": nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
            ),
            "flat": nn.Flatten(),
            "head": nn.Linear(16, 3),
        }
        return kind(nn.Sequential(OrderedDict(layers)), **head, **options).double()

    options = {"align": "sinkhorn", "chunk_size": 2, "queries": 0.5}
    same(both(make, images(1, masked), cross_entropy, **options))


def dropping(recompute: bool, engine: str = "batched") -> tr.Learner:
    model = nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.4), nn.Tanh(), nn.Linear(5, 3)).double()
    return tr.MAML(model, lr=0.3, steps=3, engine=engine, recompute=recompute)


@pytest.mark.full
@pytest.mark.parametrize("engine", AGAIN)
def test_random_layers_draw_the_same_again(engine: str) -> None:
    same(both(lambda recompute: dropping(recompute, engine), contracts.regression_batch()))


def test_with_other_draws_it_would_be_another_gradient(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("trlearner.learners.recompute.set_random_state", lambda state: None)
    one, other = both(dropping, contracts.regression_batch())
    close(one["loss"], other["loss"], TIGHT)
    with pytest.raises(AssertionError, match="differ by"):
        close(one["model.0.weight"], other["model.0.weight"], TIGHT)


def learner_of(steps: int, recompute: bool, hidden: int = 8, **options: Any) -> tr.MAML:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()
    options = {"lr": 0.1, "engine": "batched", **options}
    return tr.MAML(model, steps=steps, recompute=recompute, **options)


@pytest.mark.full
@pytest.mark.parametrize("engine", AGAIN)
def test_what_is_kept_grows_by_the_parameters_only(engine: str) -> None:
    """Between 2 and 14 steps, 50 samples a task: 12 times its adapted parameters, once."""
    batch, growth = contracts.regression_batch(tasks=2, support=50), {}
    for recompute in (False, True):
        kept = []
        for steps in (2, 14):
            learner = learner_of(steps, recompute, engine=engine)
            with Living() as living:
                before = living.bytes
                adapted = learner.adapt(batch.support, mse_loss)
                kept.append(living.bytes)
                adapted(batch.query.x).sum().backward()
                learner.zero_grad()
                del adapted
                assert living.bytes == before == 0  # and nobody had to look for cycles
        growth[recompute] = (kept[1] - kept[0]) / 12
    parameters = 2 * sum(p.numel() * p.element_size() for p in learner.parameters())
    assert parameters <= growth[True] < 1.3 * parameters
    assert growth[False] > 10 * parameters


@pytest.mark.parametrize("backwards", [0, 1, 2])
def test_nothing_is_left_and_who_goes_back_twice_gets_the_same(backwards: int) -> None:
    batch, found = contracts.regression_batch(), []
    gc.disable()
    try:
        with Living() as living:
            learner = learner_of(3, recompute=True)
            before = living.bytes
            loss = learner.adapt(batch.support, mse_loss)(batch.query.x).square().mean()
            for _ in range(backwards):
                wanted = list(learner.parameters())
                found.append(torch.autograd.grad(loss, wanted, retain_graph=True)[0].tolist())
            del loss
            assert living.bytes == before
    finally:
        gc.enable()
    assert len({str(gradient) for gradient in found}) == min(backwards, 1)


def test_the_gradient_of_the_meta_gradient() -> None:
    batch, found = contracts.regression_batch(), []
    for recompute in (False, True):
        learner = learner_of(2, recompute)
        loss = learner.adapt(batch.support, mse_loss)(batch.query.x).square().mean()
        wanted = list(learner.parameters())
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 1e-8
        close(other, one, TIGHT)


def test_a_look_ahead_sees_the_same() -> None:
    """Which goes back through the meta-gradient, and watches the inner loop."""
    batch, found = contracts.regression_batch(tasks=5), []
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for recompute in (False, True):
        learner = learner_of(2, recompute)
        found.append(lookahead("batched", learner, batch[:3], batch[3:], w, mse_loss, lr=0.1))
    assert found[0].abs().max() > 1e-8
    close(*found, TIGHT)


def test_autocast_is_as_it_was_in_the_step() -> None:
    batch, found = contracts.regression_batch().to(torch.float32), []
    for recompute in (False, True):
        learner = learner_of(3, recompute).float()
        with torch.autocast("cpu", torch.bfloat16):
            loss = learner.adapt(batch.support, mse_loss)(batch.query.x).float().square().mean()
        loss.backward()
        found.append([p.grad for p in learner.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_step_is_computed_twice_and_without_a_graph_once() -> None:
    batch, calls = contracts.regression_batch(), list[int]()
    for options in ({}, {"first_order": True}):
        learner = learner_of(5, recompute=True, **options)
        learner.model.register_forward_hook(lambda *_: calls.append(1))
        adapted = learner.adapt(batch.support, mse_loss, steps=0)  # which looks at the engine
        for graph in (True, False):
            calls.clear()
            with torch.set_grad_enabled(graph):
                adapted = learner.adapt(batch.support, mse_loss)
            if graph:
                sum(t.sum() for t in adapted.fast.values()).backward()
            assert len(calls) == (10 if graph and not options else 5)


@pytest.mark.unchecked
def test_parameters_that_changed_before_the_backward_pass_raise() -> None:
    batch, learner = contracts.regression_batch(), learner_of(2, recompute=True)
    loss = learner.adapt(batch.support, mse_loss)(batch.query.x).sum()
    with torch.no_grad():
        learner.model[0].weight += 1.0
    with pytest.raises(RuntimeError, match="changed in place between .* call loss.backward"):
        loss.backward()


@pytest.mark.unchecked
def test_another_mode_before_the_backward_pass_raises() -> None:
    batch, learner = contracts.regression_batch(), dropping(True)
    loss = learner.adapt(batch.support, mse_loss)(batch.query.x).sum()
    learner.eval()
    with pytest.raises(RuntimeError, match="not the same step.*leave model.train"):
        loss.backward()


@pytest.mark.unchecked
@pytest.mark.parametrize("engine", ["higher", "traced", "compiled"])
def test_engines_that_cannot_say_so(engine: str) -> None:
    learner = learner_of(2, recompute=True, engine=engine)
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4)).double()
    for run in (
        lambda: reg(learner, contracts.regression_batch()),
        lambda: learner.adapt(contracts.regression_batch().support, mse_loss),
    ):
        with pytest.raises(ValueError, match=f"engine='{engine}' .*Use engine='auto'"):
            run()


def test_no_graph_is_compiled_where_steps_are_computed_again() -> None:
    batch = contracts.regression_batch()
    for engine in ("auto", "tune"):
        learner = learner_of(2, recompute=True, engine=engine)
        reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4)).double()
        assert reg(learner, batch).engine in ("loop", "batched")
        with looking(learner, batch, mse_loss) as (engine_of_look, _):
            assert engine_of_look.name in ("loop", "batched")


@pytest.mark.full
def test_the_doctor_finds_what_it_finds_without() -> None:
    batch = contracts.regression_batch()
    found = [str(tr.doctor(dropping(recompute), batch)) for recompute in (False, True)]
    assert found[0] == found[1]


def test_copies_and_what_is_saved() -> None:
    learner = learner_of(2, recompute=True)
    assert copy.deepcopy(learner).recompute and pickle.loads(pickle.dumps(learner)).recompute
    assert list(learner.state_dict()) == list(learner_of(2, recompute=False).state_dict())
