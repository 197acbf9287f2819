"""The traced graph's life: when it is made anew, what it refuses; and Inductor itself on a few cells.

That the traced graph computes what the formulas say is tested with the other engines, in
test_engines.py, test_learners.py and test_regularizer.py.
"""

import gc
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import trlearner as tr
from trlearner.engines import compiled

ROUNDING = 1e-5


def regularizer(**options: object) -> tr.TRLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = tr.LabelledEncoder(None, dim=4, features=2, targets=3, hidden=5)
        return tr.TRLearner(encoder=encoder, **{"heads": 3, "lam": 0.7, **options}).double()


def traced(name: str = "maml", **options: object) -> tr.Learner:
    """One inner step: tracing a second one proves nothing more about the graph's life."""
    return contracts.learner(name, contracts.net(), "traced", **{"steps": 1, **options})


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a graph is traced."""
    seen: list[str] = []
    build = compiled.build

    def counting(*arguments, **options):  # type: ignore[no-untyped-def]
        seen.append("built")
        return build(*arguments, **options)

    monkeypatch.setattr(compiled, "build", counting)
    return seen


def test_one_graph_serves_all_steps_and_every_lambda(builds: list[str]) -> None:
    learner, reg = traced(), regularizer(normalize="softmax")
    twin = contracts.learner("maml", contracts.net(), "batched", steps=1)
    for step in range(5):
        reg.lam, reg.temperature = 0.1 * (step + 1), 0.2 + 0.1 * step
        batch = contracts.regression_batch(seed=step)
        out, expected = reg(learner, batch), reg(twin, batch)
        assert out.engine == "traced"
        close(out.loss, expected.loss, 1e-12)
        close(out.relation_loss, expected.relation_loss, 1e-12)
    assert len(builds) == 1


@pytest.mark.full
def test_the_usual_training_loop_works_unchanged(builds: list[str]) -> None:
    """Accumulation, clipping, a schedule and any optimizer give what engine batched gives."""
    results = []
    for engine in ("traced", "batched"):
        learner, reg = contracts.learner("maml", contracts.net(), engine, steps=1), regularizer()
        parameters = [*learner.parameters(), *reg.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for step in range(10):
            optimizer.zero_grad()
            for part in range(2):
                out = reg(learner, contracts.regression_batch(seed=2 * step + part))
                (out.loss / 2).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        results.append(torch.cat([p.detach().flatten() for p in parameters]))
    close(results[0], results[1], 1e-9)
    assert len(builds) == 1


@pytest.mark.full
def test_without_gradients_a_forward_only_graph_runs() -> None:
    learner, reg, batch = traced(), regularizer(), contracts.regression_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = reg(learner, batch)
        with torch.no_grad():
            out = reg(learner, batch)
    assert not out.loss.requires_grad
    close(out.loss, expected.loss.detach(), 1e-12)


def test_another_shape_is_traced_anew_with_a_word_on_what_changed(builds: list[str]) -> None:
    learner, reg = traced(), regularizer()
    reg(learner, contracts.regression_batch())
    with pytest.warns(UserWarning, match=r"changed: support\.x, support\.y\. At most 8 graphs"):
        reg(learner, contracts.regression_batch(support=4))
    reg(learner, contracts.regression_batch())
    reg(learner, contracts.regression_batch(support=4))
    assert len(builds) == 2


def test_changed_settings_are_traced_anew(builds: list[str]) -> None:
    learner, reg, batch = traced(), regularizer(), contracts.regression_batch()
    before = reg(learner, batch).task_loss
    learner.lr = 0.01
    with pytest.warns(UserWarning, match="changed: settings of the learner"):
        after = reg(learner, batch).task_loss
    assert before != after
    reg.options = replace(reg.options, normalize="softmax")
    with pytest.warns(UserWarning, match="changed: normalize"):
        reg(learner, batch)
    assert len(builds) == 3


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LIMIT", 1)
    learner, reg = traced(), regularizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tasks in range(3, 5):
            reg(learner, contracts.regression_batch(tasks=tasks))
    assert len(compiled._graphs[learner][reg]) == compiled.LIMIT


def test_graphs_go_with_their_learner() -> None:
    learner, reg = traced(), regularizer()
    reg(learner, contracts.regression_batch())
    gc.collect()
    before = len(compiled._graphs)
    del learner
    gc.collect()
    assert len(compiled._graphs) == before - 1


def test_parameters_changed_before_backward_raise() -> None:
    learner, reg = traced(), regularizer()
    out = reg(learner, contracts.regression_batch())
    with torch.no_grad():
        learner.model.body.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_backward_twice_and_double_backward_raise() -> None:
    learner, reg = traced(), regularizer()
    out = reg(learner, contracts.regression_batch())
    out.loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.loss.backward()
    out = reg(learner, contracts.regression_batch())
    with pytest.raises(RuntimeError, match="create_graph=True needs engine='batched'"):
        torch.autograd.grad(out.loss, learner.model.body.weight, create_graph=True)


class Branching(nn.Module):
    """Looks at values, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_a_model_that_branches_on_values_is_refused() -> None:
    learner = tr.MAML(Branching(), steps=1, engine="traced")
    with pytest.raises(
        RuntimeError,
        match="could not trace .*data-dependent control flow.*\n.*engine='auto' or 'loop'",
    ):
        regularizer()(learner, contracts.regression_batch())


def test_a_parameter_outside_of_the_learner_is_never_frozen_into_the_graph() -> None:
    scale = nn.Parameter(torch.ones(3).double())
    reg = regularizer(loss_fn=lambda p, y: mse_loss(p * scale, y))
    with pytest.raises(RuntimeError, match="every tensor that it or the loss uses must be"):
        reg(traced(), contracts.regression_batch())


def test_hungarian_alignment_is_refused() -> None:
    reg = regularizer(align="hungarian", loss_fn=cross_entropy)
    with pytest.raises(ValueError, match="align='hungarian' cannot be part of a graph"):
        reg(traced(), contracts.class_batch())


@pytest.mark.full
def test_dropout_draws_what_engine_batched_draws() -> None:
    results = []
    for engine in ("traced", "batched"):
        model = contracts.net()
        model.body = nn.Sequential(model.body, nn.Dropout(0.5))
        learner, reg = contracts.learner("maml", model, engine, steps=1), regularizer()
        reg(learner, contracts.regression_batch())
        torch.manual_seed(0)
        results.append([reg(learner, contracts.regression_batch()).loss for _ in range(3)])
    assert len(set(results[0])) == 3
    for found, expected in zip(*results, strict=True):
        close(found, expected, 1e-7)


@pytest.mark.full
def test_batch_statistics_are_traced_and_buffers_left_alone() -> None:
    results = []
    for engine in ("traced", "batched"):
        model = contracts.net()
        model.body = nn.Sequential(model.body, nn.BatchNorm1d(5)).double()
        learner, reg = contracts.learner("maml", model, engine, steps=1), regularizer()
        before = {n: b.clone() for n, b in model.named_buffers()}
        out = reg(learner, contracts.regression_batch())
        assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
        results.append((out.loss, contracts.gradients(out.loss, learner, reg)))
    close(results[0][0], results[1][0], 1e-9)
    for key, expected in results[1][1].items():
        close(results[0][1][key], expected, 1e-9)


SLOW = [pytest.param(cell, marks=pytest.mark.slow) for cell in ("metasgd-masked", "maml-sinkhorn")]


@pytest.mark.full
@pytest.mark.unchecked
@pytest.mark.parametrize("cell", ["maml", *SLOW])
def test_inductor_equals_batched_within_rounding(cell: str, capfd) -> None:  # type: ignore[no-untyped-def]
    name, *kind = cell.split("-")
    results = []
    for engine in ("compiled", "batched"):
        learner = contracts.learner(name, contracts.net(), engine, steps=1).float()
        batch, options = contracts.regression_batch(), {}
        if kind == ["sinkhorn"]:
            batch, options = (
                contracts.class_batch(),
                {"loss_fn": cross_entropy, "align": "sinkhorn"},
            )
        if kind == ["masked"]:
            tasks = contracts.tasks_of(batch)
            cut = [((x[: 5 - i], y[: 5 - i]), q) for i, ((x, y), q) in enumerate(tasks)]
            batch = tr.TaskBatch.from_tasks(cut)
        reg = regularizer(**options).float()
        out = reg(learner, batch.to(torch.float32))
        assert out.engine == engine
        results.append((out, contracts.gradients(out.loss, learner, reg)))
    (found, gradients), (expected, wanted) = results
    for part in ("loss", "task_loss", "relation_loss", "relations", "weights", "predictions"):
        close(getattr(found, part).detach(), getattr(expected, part).detach(), ROUNDING)
    for key in wanted:
        close(gradients[key], wanted[key], ROUNDING)
    assert "trlearner: compiling " in capfd.readouterr().err


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`fails(text)` takes a step on `compiled` with an Inductor that raises."""

    def run(text: str) -> None:
        def broken(*arguments):  # type: ignore[no-untyped-def]
            raise AssertionError(text)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch._inductor import compile_fx
        monkeypatch.setattr(compile_fx, "compile_fx", broken)
        learner = contracts.learner("maml", contracts.net(), "compiled", steps=1)
        regularizer()(learner, contracts.regression_batch())

    return run


@pytest.mark.unchecked
def test_no_compiler_is_an_error_that_says_what_to_do(fails, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(
        RuntimeError,
        match=r"no working C.*\nInductor needs a C\+\+ compiler, and there is no 'no-such-compiler -O2': "
        "install it, or set CXX. Use engine='batched'",
    ):
        fails("no working C++ compiler found")


@pytest.mark.unchecked
def test_another_cause_is_told_without_blaming_the_compiler(fails, monkeypatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -B")  # something that is there
    with pytest.raises(
        RuntimeError, match=r"fake mode doesn't match\nUse engine='batched'"
    ) as raised:
        fails("fake mode doesn't match")
    assert "C++" not in str(raised.value)
    assert isinstance(raised.value.__cause__, AssertionError)


def step_with(
    compiler: Callable[..., Any], model: nn.Module, patch: pytest.MonkeyPatch
) -> tr.Output:
    """A step on `compiled` with another compiler in Inductor's place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import compile_fx
    patch.setattr(compile_fx, "compile_fx", compiler)
    learner = contracts.learner("maml", model, "compiled", steps=1)
    return regularizer()(learner, contracts.regression_batch())


def test_code_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor made right losses with wrong gradients of a step with `nn.RNNCell`."""

    def wrong(graph, fakes):  # type: ignore[no-untyped-def]
        def run(*tensors: Tensor) -> list[Tensor]:
            loss, *others = graph(*tensors)
            return [loss, *(1.1 * t if t.is_floating_point() else t for t in others)]

        return run

    with pytest.raises(RuntimeError, match=r"Inductor's code is off by .* Use engine='batched'"):
        step_with(wrong, contracts.net(), monkeypatch)


def test_noise_is_drawn_alike_for_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(contracts.net(), nn.Dropout(0.5))

    def right(graph, fakes):  # type: ignore[no-untyped-def]
        return graph

    step_with(right, model, monkeypatch)


@pytest.mark.unchecked
def test_inductor_sees_inputs_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to torch 2.8 it takes those of the graph's placeholders, and refuses to mix them with others.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import compile_fx
    seen = []

    def compile(graph, inputs):  # type: ignore[no-untyped-def]
        places = graph.graph.find_nodes(op="placeholder")
        seen.append(all(p.meta["val"] is t for p, t in zip(places, inputs, strict=True)))
        return graph

    monkeypatch.setattr(compile_fx, "compile_fx", compile)
    learner = contracts.learner("maml", contracts.net(), "compiled", steps=1)
    regularizer()(learner, contracts.regression_batch())
    assert seen == [True]


@pytest.mark.slow
@pytest.mark.unchecked
def test_a_hundred_compiled_steps_follow_batched() -> None:
    losses = {}
    for engine in ("compiled", "batched"):
        torch.manual_seed(0)
        learner = tr.MAML(contracts.net().float(), lr=0.05, steps=3, engine=engine)
        reg = regularizer().float()
        optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=1e-3)
        losses[engine] = []
        for step in range(100):
            optimizer.zero_grad()
            out = reg(learner, contracts.regression_batch(seed=step).to(torch.float32))
            out.loss.backward()
            optimizer.step()
            losses[engine].append(out.loss.detach())
    close(torch.stack(losses["compiled"]), torch.stack(losses["batched"]), 1e-4)


def test_autocast_is_traced_anew(builds: list[str]) -> None:
    learner, reg, batch = traced().float(), regularizer().float(), contracts.regression_batch()
    batch = batch.to(torch.float32)
    plain = reg(learner, batch).task_loss
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match="because this changed: autocast"),
    ):
        cast = reg(learner, batch).task_loss
    assert plain != cast
    assert len(builds) == 2


@pytest.mark.full
def test_adaptation_for_evaluation_runs_as_a_graph(builds: list[str]) -> None:
    batch = contracts.regression_batch()
    for name in (*contracts.LEARNERS, *contracts.SOLVED):
        tasks = contracts.class_batch() if name in contracts.CLASSIFIERS else batch
        loss = cross_entropy if name in contracts.CLASSIFIERS else mse_loss
        learner = traced(name, steps=2)
        twin = contracts.learner(name, contracts.net(), "batched", steps=2)
        with torch.no_grad():
            adapted, expected = (one.adapt(tasks.support, loss) for one in (learner, twin))
        assert adapted.engine == "traced"
        close(adapted(tasks.query), expected(tasks.query))
        assert not adapted(tasks.query).requires_grad
    assert len(builds) == 7


def test_other_steps_or_another_loss_adapt_anew() -> None:
    learner, batch = traced(steps=2), contracts.regression_batch()
    with torch.no_grad():
        first = learner.adapt(batch.support, mse_loss)(batch.query)
        with pytest.warns(UserWarning, match="because this changed: steps"):
            second = learner.adapt(batch.support, mse_loss, steps=3)(batch.query)
        with pytest.warns(UserWarning, match="because this changed: steps, loss function"):
            third = learner.adapt(batch.support, nn.L1Loss())(batch.query)
    assert not torch.equal(first, second) and not torch.equal(first, third)


def test_where_gradients_are_wanted_adaptation_is_left_to_autograd() -> None:
    learner, batch = traced(), contracts.regression_batch()
    adapted = learner.adapt(batch.support, mse_loss)
    assert adapted.engine == "batched" and adapted(batch.query).requires_grad


def unequal(shots: int, queries: int) -> tr.TaskBatch:
    """Tasks of up to so many samples, of which some are masked."""
    g = torch.Generator().manual_seed(shots)

    def draw(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"generator": g, "dtype": torch.float64}
        return torch.randn(samples, 2, **options), torch.randn(samples, 3, **options)

    return tr.TaskBatch.from_tasks(
        [(draw(max(1, shots - i)), draw(max(1, queries - i))) for i in range(4)]
    )


@pytest.mark.full
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_sizes_of_masked_tasks_are_rounded_and_change_nothing(
    builds: list[str], share: float
) -> None:
    results = []
    for engine in ("traced", "batched"):
        learner = contracts.learner("maml", contracts.net(), engine, steps=1)
        reg = regularizer(queries=share, generator=torch.Generator().manual_seed(0))
        found = []
        for shots, queries in ((5, 7), (6, 8), (5, 8), (6, 7)):
            out = reg(learner, unequal(shots, queries))
            assert out.predictions.shape == (4, queries, 3)
            gradients = contracts.gradients(out.loss, learner, reg)
            found.append((out.loss, out.relation_loss, out.predictions, *gradients.values()))
        results.append(found)
    for found, expected in zip(*results, strict=True):
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    assert len(builds) == 1


def test_sizes_are_rounded_to_two_an_octave() -> None:
    rounded = [compiled.round_up(n) for n in range(1, 26)]
    assert sorted(set(rounded)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert all(n <= r <= 1.5 * n for n, r in enumerate(rounded, 1))


@pytest.mark.full
def test_a_loss_with_weights_of_its_own_is_part_of_the_graph(builds: list[str]) -> None:
    """Class weights are inputs: they may change, and a learned loss gets its gradient."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3).double())

        def forward(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (self.scale * (predictions - targets) ** 2).mean()

    results = []
    for engine in ("traced", "batched"):
        learner, loss = contracts.learner("maml", contracts.net(), engine, steps=1), Weighted()
        reg = regularizer(loss_fn=loss)
        reg(learner, contracts.regression_batch())
        with torch.no_grad():
            loss.scale += torch.arange(3)
        for lam in (0.7, 0.0):
            reg.lam = lam
            out = reg(learner, contracts.regression_batch())
            results.append([out.loss, contracts.gradients(out.loss, loss)["0.scale"]])
            assert results[-1][1].abs().min() > 0
    for found, expected in zip(results[:2], results[2:], strict=True):
        close(found[0], expected[0])
        close(found[1], expected[1])
    assert len(builds) == 2


@pytest.mark.full
def test_layouts_that_tracing_does_not_foresee_are_no_obstacle() -> None:
    """torch foresees another layout for the derivative of softplus than its kernel gives."""
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.Softplus(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 1)
    ).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, 6, generator=g, dtype=torch.float64)
    batch = tr.TaskBatch(support=(x, x.mean((2, 3))[..., None]), query=(x, x[..., :1, 0]))
    reg = tr.TRLearner(tr.UpdateEncoder(dim=6)).double()
    found = {}
    for engine in ("traced", "batched"):
        learner = tr.MAML(model, lr=0.1, steps=0, engine=engine)
        found[engine] = contracts.gradients(reg(learner, batch).loss, learner)
    for name, expected in found["batched"].items():
        close(found["traced"][name], expected, 1e-12)


@pytest.mark.full
def test_lambda_is_as_precise_as_the_parameters_where_inputs_are_tokens() -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 1)).double()
    x, y = torch.randint(7, (3, 2, 4), generator=g), torch.ones(3, 2, 1).double()
    batch = tr.TaskBatch(support=(x, y), query=(x, y))
    reg = tr.TRLearner(tr.UpdateEncoder(dim=6), lam=0.7).double()
    traced, batched = (
        reg(tr.MAML(model, lr=0.1, steps=1, engine=engine), batch)
        for engine in ("traced", "batched")
    )
    assert batched.relation_loss > 0.1
    close(traced.loss, batched.loss, 1e-13)
