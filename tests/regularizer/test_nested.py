"""Models of several inputs and outputs: dicts, tuples and lists of tensors go the way of one tensor."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts import later
from torch import Tensor, nn
from torch.testing import assert_close

import trlearner as tr

TIGHT = {"rtol": 0.0, "atol": 1e-9}
ENGINES = ["batched", *later("higher", "channels_last", "traced", "auto")]
TASKS, SHOTS, QUERIES = 3, 4, 5


class TwoInputs(nn.Module):
    """Takes two tensors one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(a) + self.second(b)))


class Words(nn.Module):
    """Takes tokens with a mask, and numbers, by name; returns a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, padding_idx=0)
        self.body, self.mean, self.rest = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 1)

    def forward(self, ids: Tensor, mask: Tensor, *, extra: tuple[Tensor]) -> dict[str, Any]:
        seen = (self.table(ids) * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True)
        h = torch.tanh(self.body(seen) + extra[0].sum(-1, keepdim=True))
        return {"mean": self.mean(h), "rest": (self.rest(h)[..., 0],)}


def squares(predictions: Any, targets: Any) -> Tensor:
    return (predictions - targets).square().mean()


def of_words(predictions: dict[str, Any], targets: dict[str, Tensor]) -> Tensor:
    return squares(predictions["mean"], targets["mean"]) + squares(
        predictions["rest"][0], targets["rest"]
    )


def draw_two(samples: int, g: torch.Generator) -> tuple[Any, Any]:
    a, b, y = (torch.randn(TASKS, samples, k, generator=g, dtype=torch.float64) for k in (2, 3, 1))
    return (a, b), y


def draw_words(samples: int, g: torch.Generator) -> tuple[Any, Any]:
    ids = torch.randint(1, 9, (TASKS, samples, 5), generator=g)
    mask = torch.rand(TASKS, samples, 5, generator=g, dtype=torch.float64).round()
    mask[..., 0] = 1
    extra, mean, rest = (
        torch.randn(TASKS, samples, *s, generator=g, dtype=torch.float64) for s in ((2,), (2,), ())
    )
    return {"ids": ids, "mask": mask, "extra": (extra,)}, {"mean": mean, "rest": rest}


def batch(draw: Callable[..., tuple[Any, Any]], unequal: bool = False) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(0)
    support, query = draw(SHOTS, g), draw(QUERIES, g)
    if not unequal:
        return tr.TaskBatch(support, query)
    masks = (torch.arange(n) < torch.tensor([[n], [n - 1], [2]]) for n in (SHOTS, QUERIES))
    parts = [tr.Samples(x, y, mask) for (x, y), mask in zip((support, query), masks, strict=True)]
    return tr.TaskBatch(*parts)


CASES: dict[str, tuple[type[nn.Module], Callable[..., Any], Any, int, int]] = {
    "two inputs": (TwoInputs, draw_two, squares, 5, 1),
    "dicts": (Words, draw_words, of_words, 12, 3),
}


def encoder(kind: str, features: int, targets: int) -> nn.Module:
    if kind == "labelled":
        return tr.LabelledEncoder(None, dim=4, features=features, targets=targets)
    return tr.UpdateEncoder(dim=4) if kind == "update" else tr.InputEncoder(None, dim=features)


@functools.cache
def step(case: str, engine: str, kind: str, unequal: bool, **options: Any) -> list[Tensor]:
    """What a regularized meta-step finds, and its gradient."""
    make, draw, loss_fn, features, targets = CASES[case]
    torch.manual_seed(0)
    model = make().double()
    learner = tr.MAML(model, lr=0.1, steps=2, engine=engine)
    reg = tr.TRLearner(
        encoder(kind, features, targets), loss_fn=loss_fn, lam=0.5, **options
    ).double()
    tasks = batch(draw, unequal)
    out = reg(learner, tasks)
    out.loss.backward()
    real = tasks.query.is_real()
    predictions = [p[real] for p in torch.utils._pytree.tree_leaves(out.predictions)]
    return [out.loss, out.relation_loss, *predictions, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("unequal", [False, *later(True)])
@pytest.mark.parametrize("kind", ["update", *later("labelled", "input")])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree(engine: str, case: str, kind: str, unequal: bool) -> None:
    assert_close(step(case, engine, kind, unequal), step(case, "loop", kind, unequal), **TIGHT)


@pytest.mark.parametrize(
    "options", [{"chunk_size": 1}, *later({"top_k": 1}, {"queries": 0.4}, {"normalize": "softmax"})]
)
def test_options_agree(options: dict[str, Any]) -> None:
    found = [step("dicts", engine, "update", True, **options) for engine in ("batched", "loop")]
    assert_close(found[0], found[1], **TIGHT)


@pytest.mark.parametrize("case", CASES)
def test_adaptation_is_plain_gradient_descent(case: str) -> None:
    """Against torch.func, one task after the other."""
    make, draw, loss_fn, _, _ = CASES[case]
    model, tasks = make().double(), batch(draw)
    found = tr.MAML(model, lr=0.1, steps=2, engine="batched").adapt(tasks.support, loss_fn)(
        tasks.query
    )
    for i in range(TASKS):
        fast = dict(model.named_parameters())
        x, y = tasks.support[i : i + 1].x[0].tree, tasks.support.y[i]
        y = y if isinstance(y, Tensor) else y.tree
        for _ in range(2):
            loss = loss_fn(plainly(model, fast, x), y)
            grads = torch.autograd.grad(loss, list(fast.values()))
            fast = {n: p - 0.1 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        wanted = plainly(model, fast, tasks.query.x[i].tree)
        mine = torch.utils._pytree.tree_map(lambda t, i=i: t[i], found)
        assert_close(mine, wanted, **TIGHT)


def plainly(model: nn.Module, state: dict[str, Tensor], x: Any) -> Any:
    args, kwargs = ((), x) if isinstance(x, dict) else (x, {})
    return torch.func.functional_call(model, state, args, kwargs)


@pytest.mark.parametrize("kind", ["update", "labelled"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_loop_of_ones_own_agrees(case: str, kind: str, together: bool) -> None:
    make, draw, loss_fn, features, targets = CASES[case]
    torch.manual_seed(0)
    model = make().double()
    reg = tr.TRLearner(encoder(kind, features, targets), loss_fn=loss_fn, lam=0.5).double()
    tasks = reg.collect(start=dict(model.named_parameters()), together=together)
    given, losses = batch(draw), []
    for i in range(TASKS):
        support, query = raw_task(given.support, i), raw_task(given.query, i)
        fast = dict(model.named_parameters())
        for _ in range(2):
            loss = loss_fn(plainly(model, fast, support[0]), support[1])
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - 0.1 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        losses.append(loss_fn(plainly(model, fast, query[0]), query[1]))
        tasks.add(
            lambda x, fast=fast: plainly(model, fast, x), support=support, query=query, fast=fast
        )
    loss = torch.stack(losses).mean() + tasks.penalty()
    loss.backward()
    found = [loss, *(p.grad for p in model.parameters())]
    wanted = step(case, "loop", kind, False)
    assert_close(found, [wanted[0], *wanted[1 - len(found) :]], **TIGHT)


def raw_task(samples: tr.Samples, i: int) -> tuple[Any, Any]:
    """One task's pair, in the structure that was given."""
    x, y = (getattr(part[i], "tree", part[i]) for part in (samples.x, samples.y))
    return x, y


def test_the_decorator_hands_over_the_users_own_structure() -> None:
    seen = []
    model = Words().double()
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4), loss_fn=of_words).double()

    @reg.regularize
    def adapt(support: tuple[Any, Any]) -> Callable[[Any], Any]:
        seen.append(support)
        fast = {name: p * (1 + 0.1 * len(seen)) for name, p in model.named_parameters()}
        return lambda x: plainly(model, fast, x)

    out = adapt(batch(draw_words, unequal=True))
    out.loss.backward()
    assert set(seen[0][0]) == {"ids", "mask", "extra"} and set(seen[0][1]) == {"mean", "rest"}
    assert [len(pair[0]["ids"]) for pair in seen] == [4, 3, 2]
    assert out.predictions["mean"].shape == (TASKS, QUERIES, 2)


def test_tasks_of_unequal_sizes_are_stacked_leaf_by_leaf() -> None:
    def pair(n: int) -> tuple[Any, Any]:
        return {"a": torch.ones(n, 2), "b": (torch.zeros(n),)}, [torch.ones(n, 1), torch.ones(n)]

    made = tr.TaskBatch.from_tasks([(pair(2), pair(3)), (pair(4), pair(3))])
    assert made.support.x["a"].shape == (2, 4, 2) and made.support.mask.sum().item() == 6
    assert made.query.mask is None and made[1:].query.y.tree[0].shape == (1, 3, 1)
    moved = made.to(torch.float64)
    assert moved.support.x["b"][0].dtype == torch.float64
    assert repr(made.query).startswith("Samples(x={['a']: [2, 3, 2], ['b'][0]: [2, 3]}, y={")


X, Y = torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (
            {"a": X, "b": X[:, :2]},
            r"all parts of x must agree on \[tasks, samples\], got x\['a'\] ",
        ),
        ({"a": X, "b": "no"}, r"x\['b'\] must be a tensor, got str"),
        ({"a": X, "b": X[:, 0, 0]}, r"x\['b'\] must be \[tasks, samples, ...\], got \[2\]"),
        ({"a": X, "b": X / 0}, r"x\['b'\] must be finite, got NaN or infinity in tasks \[0, 1\]"),
        ((X[:1], X[:1]), r"x and y must agree on \[tasks, samples\], got \{\[0\]: \[1, 3, 1\], "),
    ],
)
def test_wrong_structures_are_named(x: Any, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        tr.TaskBatch((x, Y), (x, Y))


def test_structures_that_differ_between_tasks_or_parts_are_named() -> None:
    with pytest.raises(ValueError, match="support and query must have the same parts in x, got"):
        tr.TaskBatch(({"a": X}, Y), ({"b": X}, Y))
    one, other = ({"a": X[0], "b": X[0]}, Y[0]), ({"a": X[0]}, Y[0])
    with pytest.raises(
        ValueError, match=r"support x must have the same parts in all tasks.*in task 1"
    ):
        tr.TaskBatch.from_tasks([(one, one), (other, one)])
    short = ({"a": X[0], "b": X[0, :2]}, Y[0])
    with pytest.raises(
        ValueError, match=r"all parts of task 1's query x must agree on \[samples\]"
    ):
        tr.TaskBatch.from_tasks([(one, one), (one, short)])
    with pytest.raises(ValueError, match="ways=3 is for class labels"):
        tr.TaskBatch((X, (Y.long(),)), (X, (Y.long(),)), ways=3)


class Named(nn.Module):
    """Returns its predictions beside something else."""

    def __init__(self, rest: Any) -> None:
        super().__init__()
        self.layer, self.rest = nn.Linear(1, 1), rest

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.layer(x), "rest": self.rest}


@pytest.mark.unchecked
def test_output_names_the_part_that_predicts() -> None:
    model = Named(rest=None)
    plain = tr.MAML(model.layer, steps=1).adapt((X + 1, Y), squares)(X + 1)
    learner = tr.MAML(model, steps=1, output="logits")
    assert_close(learner.adapt((X + 1, Y), squares)(X + 1), plain)
    assert_close(learner(X[0] + 1), model.layer(X[0] + 1))
    with pytest.raises(
        ValueError, match=r"output='scores' names no part of what the model returns: \["
    ):
        tr.MAML(model, output="scores").adapt((X, Y), squares)
    with pytest.raises(TypeError, match=r"got NoneType at \['rest'\].* output=\"logits\""):
        tr.MAML(model).adapt((X, Y), squares)
    with pytest.raises(TypeError, match="output must name the part"):
        tr.MAML(model, output=1.5)


@pytest.mark.unchecked
def test_call_says_how_a_model_is_called() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, inputs: dict[str, Tensor], scale: float) -> Tensor:
            return self.layer(inputs["x"]) * scale

    model = Odd()
    for engine in ("loop", "batched"):
        learner = tr.MAML(model, steps=1, engine=engine, call=lambda m, x: m(x, scale=2.0))
        found = learner.adapt(({"x": X + 1}, Y), squares)({"x": X + 1})
        same = tr.MAML(model.layer, steps=1, engine="loop", call=lambda m, x: 2 * m(x))
        assert_close(found, same.adapt((X + 1, Y), squares)(X + 1))
    with pytest.raises(TypeError, match="call must be"):
        tr.MAML(model, call=3)


class Joined(nn.Module):
    """`TwoInputs` on one tensor that holds both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x[..., :2], x[..., 2:])


def one_and_two(tasks: tr.TaskBatch) -> list[tuple[nn.Module, tr.TaskBatch]]:
    """The same model and tasks twice: with one tensor of inputs, and with two."""
    torch.manual_seed(0)
    model = TwoInputs().double()
    parts = [(torch.cat(part.x.tree, -1), part.y) for part in (tasks.support, tasks.query)]
    return [(Joined(model), tr.TaskBatch(*parts, ids=tasks.ids)), (model, tasks)]


def named_batch() -> tr.TaskBatch:
    made = batch(draw_two)
    return tr.TaskBatch(made.support, made.query, ids="abc")


@pytest.mark.parametrize("rule", ["gaussian", "softmax"])
def test_a_memory_answers_as_with_one_tensor(rule: str) -> None:
    answers = []
    for model, tasks in one_and_two(named_batch()):
        memory = tr.TaskMemory(tr.MAML(model, lr=0.1, steps=2), squares, rule=rule, share=0.5)
        memory.remember(tasks)
        answers.append(memory.adapt(tasks.support, squares)(tasks.query))
        memory.tune()
        file = io.BytesIO()
        torch.save(memory.state_dict(), file)
        file.seek(0)
        memory.load_state_dict(torch.load(file, weights_only=True))
    assert_close(answers[0], answers[1], **TIGHT)


def test_a_memory_refuses_targets_of_several_tensors() -> None:
    memory = tr.TaskMemory(tr.MAML(Words().double(), steps=1), of_words)
    with pytest.raises(
        ValueError, match=r"a memory needs targets in one tensor, got y \{\['mean'\]: "
    ):
        memory.remember(batch(draw_words))


def test_a_kernel_is_given_the_structure() -> None:
    def kernel(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        return torch.exp(-torch.cdist(a[0], b[0]).square())

    memory = tr.TaskMemory(tr.MAML(TwoInputs().double(), steps=1), squares, kernel=kernel)
    memory.remember(named_batch())
    memory.tune()
    assert memory.adapt(named_batch().support, squares)(named_batch().query).shape == (3, 5, 1)


def test_a_sampler_weighs_as_with_one_tensor() -> None:
    found = []
    for model, tasks in one_and_two(named_batch()):
        g = torch.Generator().manual_seed(1)
        sampler = tr.AdaptiveTaskSampler("abc", 3, every=1, generator=g)
        learner = tr.MAML(model, lr=0.1, steps=1, engine="batched")
        reg = tr.TRLearner(tr.UpdateEncoder(4), lam=0.1, sampler=sampler).double()
        for _ in range(3):
            reg(learner, tasks).loss.backward()
        file = io.BytesIO()
        torch.save(sampler.state_dict(), file)
        file.seek(0)
        sampler.load_state_dict(torch.load(file, weights_only=True))
        found.append(sampler.weigh(learner, tasks))
    assert_close(found[0], found[1], **TIGHT)


def test_function_encoder_says_that_it_asks_one_tensor() -> None:
    reg = tr.TRLearner(tr.FunctionEncoder(torch.zeros(4, 2)), loss_fn=squares).double()
    with pytest.raises(
        ValueError, match="FunctionEncoder asks all models about one tensor of inputs"
    ):
        reg(tr.MAML(TwoInputs().double(), steps=1), named_batch())
