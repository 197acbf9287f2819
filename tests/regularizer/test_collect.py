"""A loop of the user's own, with the relation term: what it computes, and what it refuses."""

import warnings

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import trlearner as tr
from trlearner.regularizer.collect import Collected

LR, STEPS = 0.3, 2


def regularizer(model: nn.Module, **options: object) -> tr.TRLearner:
    """One whose encoder looks through the model; equal weights for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = tr.LabelledEncoder(model.body, dim=4, features=5, targets=3, hidden=5)
        generator = torch.Generator().manual_seed(5)
        options = {"heads": 3, "lam": 0.7, "generator": generator, **options}
        return tr.TRLearner(encoder=encoder, **options).double()


def adapt(model: nn.Module, x: Tensor, y: Tensor, loss_fn=mse_loss):  # type: ignore[no-untyped-def]
    """The user's own inner loop."""
    fast = dict(model.named_parameters())
    for _ in range(STEPS):
        loss = loss_fn(torch.func.functional_call(model, fast, (x,)), y)
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {n: p - LR * g for (n, p), g in zip(fast.items(), gradients, strict=True)}
    return lambda x, fast=fast: torch.func.functional_call(model, fast, (x,))


def by_hand(
    model: nn.Module, reg: tr.TRLearner, batch: tr.TaskBatch, loss_fn=mse_loss, **options
) -> tuple[Tensor, Collected]:  # type: ignore[no-untyped-def]
    tasks, loss = reg.collect(**options), torch.zeros((), dtype=torch.float64)
    for support, query in contracts.tasks_of(batch):
        fmodel = adapt(model, *support, loss_fn)
        tasks.add(fmodel, support=support, query=query)
        loss = loss + loss_fn(fmodel(query[0]), query[1])
    if options.get("reduction") != "sum":
        loss = loss / len(batch)
    return loss + tasks.penalty(), tasks


def engines(model: nn.Module, reg: tr.TRLearner, batch: tr.TaskBatch) -> tr.Output:
    return reg(tr.MAML(model, lr=LR, steps=STEPS, engine="loop"), batch)


def unequal() -> tr.TaskBatch:
    tasks = contracts.tasks_of(contracts.regression_batch())
    cut = [
        ((x[: 5 - i], y[: 5 - i]), (a[: 6 - i], b[: 6 - i]))
        for i, ((x, y), (a, b)) in enumerate(tasks)
    ]
    return tr.TaskBatch.from_tasks(cut)


CASES = {
    "plain": {},
    "softmax": {"normalize": "softmax"},
    "top_k": {"top_k": 2},
    "half the queries": {"queries": 0.5},
    "chunks": {"chunk_size": 2},
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("sizes", ["unequal", *contracts.later("equal")])
def test_a_loop_by_hand_computes_what_the_engines_do(
    sizes: str, options: dict, together: bool
) -> None:
    batch = contracts.regression_batch() if sizes == "equal" else unequal()
    model, twin = contracts.net(), contracts.net()
    reg, other = regularizer(model, **options), regularizer(twin, **options)
    expected = engines(twin, other, batch)
    loss, tasks = by_hand(model, reg, batch, together=together)
    close(loss, expected.loss, 1e-10)
    close(tasks.term.relations, expected.relations, 1e-10)
    close(tasks.term.weights, expected.weights, 1e-10)
    found, wanted = (
        contracts.gradients(loss, model, reg),
        contracts.gradients(expected.loss, twin, other),
    )
    assert list(found) == list(wanted)
    for name, gradient in wanted.items():
        close(found[name], gradient, 1e-10)


def test_classes_are_matched_as_the_engines_match_them() -> None:
    options = {"loss_fn": cross_entropy, "align": "sinkhorn"}
    model, twin, batch = contracts.net(), contracts.net(), contracts.class_batch()
    reg, other = regularizer(model, **options), regularizer(twin, **options)
    expected = engines(twin, other, batch)
    loss, _ = by_hand(model, reg, batch, cross_entropy, ways=contracts.OUTPUTS)
    close(loss, expected.loss, 1e-10)
    close(
        contracts.gradients(loss, model)["0.body.weight"],
        contracts.gradients(expected.loss, twin)["0.body.weight"],
        1e-10,
    )


def test_a_function_encoder_asks_collected_models() -> None:
    batch, probe = contracts.regression_batch(), torch.randn(3, 2, dtype=torch.float64)
    results = []
    for run in (by_hand, engines):
        model = contracts.net()
        encoder = tr.FunctionEncoder(probe, outputs=3)
        g = torch.Generator().manual_seed(0)
        found = run(model, tr.TRLearner(encoder=encoder, generator=g).double(), batch)
        results.append(found[0] if isinstance(found, tuple) else found.loss)
    close(*results, 1e-10)


def test_sum_goes_with_a_loop_that_does_not_divide() -> None:
    batch = contracts.regression_batch()
    results = []
    for reduction in ("mean", "sum"):
        model = contracts.net()
        loss, _ = by_hand(model, regularizer(model), batch, reduction=reduction)
        results.append(loss)
    close(results[1], len(batch) * results[0], 1e-12)


def test_without_the_term_a_loop_is_its_own_to_the_last_bit() -> None:
    batch, gradients = contracts.regression_batch(), []
    for plugged in (True, False):
        model = contracts.net()
        if plugged:
            loss, _ = by_hand(model, regularizer(model, lam=0.0), batch)
        else:
            loss = torch.zeros((), dtype=torch.float64)
            for support, query in contracts.tasks_of(batch):
                loss = loss + mse_loss(adapt(model, *support)(query[0]), query[1])
            loss = loss / len(batch)
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_own_losses_go_back_with_the_penalty(sizes: str, reduction: str) -> None:
    """What `backward` leaves in ``.grad`` is the engines' gradient, the regularizer's included."""
    batch = contracts.regression_batch() if sizes == "equal" else unequal()
    model, twin = contracts.net(), contracts.net()
    reg, other = regularizer(model), regularizer(twin)
    tasks = reg.collect(reduction)
    for support, query in contracts.tasks_of(batch):
        fmodel = adapt(model, *support)
        tasks.add(fmodel, support=support, query=query, loss=mse_loss(fmodel(query[0]), query[1]))
    loss = tasks.backward()
    expected, scale = engines(twin, other, batch), len(batch) if reduction == "sum" else 1
    close(loss, (scale * expected.loss).detach(), 1e-10)
    expected.loss.backward()
    found = [*model.parameters(), *reg.parameters()]
    wanted = [*twin.parameters(), *other.parameters()]
    for p, q in zip(found, wanted, strict=True):
        close(p.grad, scale * q.grad, 1e-10)
    assert not loss.requires_grad and reg.relation.weight.grad.norm() > 0


def test_without_the_term_every_own_loss_goes_back_in_its_turn() -> None:
    """A loop that calls ``backward()`` for each task accumulates in that order: to the last bit."""
    batch, found = contracts.regression_batch(tasks=8).to(torch.float32), {}
    for way in ("ours", "a backward a task"):
        model = contracts.net().float()
        tasks = regularizer(model, lam=0.0).float().collect("sum")
        losses = []
        for support, query in contracts.tasks_of(batch):
            fmodel = adapt(model, *support)
            losses.append(mse_loss(fmodel(query[0]), query[1]))
            if way == "a backward a task":
                losses[-1].backward()
            elif way == "ours":
                tasks.add(fmodel, support=support, query=query, loss=losses[-1])
        if way == "ours":
            close(tasks.backward(), torch.stack(losses).sum().detach(), 1e-6)
        found[way] = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.equal(found["ours"], found["a backward a task"])


def test_without_the_term_gradients_are_added_in_the_order_of_the_tasks() -> None:
    """In single precision only 1e8 - 1e8 + 1, from left to right, is 1; any other order gives 0."""
    w = nn.Parameter(torch.ones(1))
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2), lam=0.0)
    tasks = reg.collect("sum")
    for scale in (1e8, -1e8, 1.0):
        x = torch.full((2, 1), scale)
        tasks.add(lambda x, w=w + 0: w * x, support=(x, x), query=(x, x), loss=scale * w.sum())
    tasks.backward()
    assert w.grad.item() == 1
    w.grad = None
    sum(scale * w.sum() for scale in (1e8, -1e8, 1.0)).backward()
    assert w.grad.item() == 0  # one backward takes the last task first


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_own_losses_may_share_a_part_of_their_graph(lam: float) -> None:
    """A body that ran once for all tasks is taken back through by each of them."""
    batch, gradients = contracts.regression_batch(), []
    for own in (True, False):
        model = contracts.net()
        features = torch.tanh(model.body(batch.query.x))
        tasks, losses = regularizer(model, lam=lam).collect(), []
        for i, (support, query) in enumerate(contracts.tasks_of(batch)):
            head = model.head.weight * (1 + 0.1 * support[1].mean())
            loss = mse_loss(features[i] @ head.T, query[1])
            losses.append(loss)
            tasks.add(
                lambda x, h=head, m=model: torch.tanh(m.body(x)) @ h.T,
                support=support,
                query=query,
                loss=loss if own else None,
            )
        if own:
            tasks.backward()
        else:
            (torch.stack(losses).mean() + tasks.penalty()).backward()
        gradients.append(model.body.weight.grad)
    close(*gradients, 1e-12)


def test_batch_statistics_are_those_of_each_task_s_own_queries() -> None:
    def made() -> nn.Module:
        model = contracts.net()
        model.body = nn.Sequential(
            model.body, nn.BatchNorm1d(5, track_running_stats=False)
        ).double()
        return model

    batch, model, twin = contracts.regression_batch(), made(), made()
    expected = engines(twin, regularizer(twin), batch)
    loss, _ = by_hand(model, regularizer(model), batch)
    close(loss, expected.loss, 1e-10)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_predictions_may_be_several_tensors(kind: str) -> None:
    """Two outputs, each with a loss of its own: as one tensor of both."""
    batch = contracts.regression_batch()

    def parts(p: Tensor) -> object:
        first, second = p[:, :1], p[:, 1:].reshape(-1, 2, 1)
        return (first, second) if kind == "tuple" else {"b": second, "a": first}

    def loss_fn(p: object, y: Tensor) -> Tensor:
        first, second = (
            p if isinstance(p, tuple) else (p["a"], p["b"]) if isinstance(p, dict) else parts(p)
        )
        return mse_loss(torch.cat([first, second.flatten(1)], 1), y)

    results = []
    for wrap in (parts, lambda p: p):
        model = contracts.net()
        tasks = regularizer(model, loss_fn=loss_fn if wrap is parts else mse_loss).collect()
        for support, query in contracts.tasks_of(batch):
            fmodel = adapt(model, *support)
            tasks.add(lambda x, f=fmodel, w=wrap: w(f(x)), support=support, query=query)
        results.append(tasks.penalty())
    close(*results, 1e-12)


def test_the_model_is_neither_registered_nor_changed() -> None:
    model = contracts.net()
    reg, before = regularizer(model), {n: p.clone() for n, p in model.named_parameters()}
    loss, _ = by_hand(model, reg, contracts.regression_batch())
    loss.backward()
    ours = {id(p) for p in reg.parameters()}
    assert not ours & {id(p) for p in model.parameters()}
    assert not any("body" in name for name in reg.state_dict())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    copy = regularizer(contracts.net())
    copy.load_state_dict(reg.state_dict())


def test_under_no_grad_there_is_a_value_and_no_complaint() -> None:
    batch, model = contracts.regression_batch(), contracts.net()
    tasks = regularizer(model).collect()
    for support, query in contracts.tasks_of(batch):
        fmodel = adapt(model, *support)
        tasks.add(fmodel, support=support, query=query)
    with torch.no_grad():
        assert tasks.penalty() > 0


WIDER = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)


# ---- wrong use ---------------------------------------------------------------------------------


def collected(count: int = 3, **options: object) -> Collected:
    model = contracts.net()
    tasks = regularizer(model, **options).collect()
    for support, query in contracts.tasks_of(contracts.regression_batch())[:count]:
        tasks.add(adapt(model, *support), support=support, query=query)
    return tasks


def test_no_task_is_an_error_and_one_a_warning() -> None:
    with pytest.raises(ValueError, match=r"no task was added: call add\(predict"):
        collected(0).penalty()
    with pytest.warns(UserWarning, match="one task has no neighbours"):
        assert collected(1).penalty() == 0


def test_penalty_comes_once_and_last() -> None:
    tasks = collected()
    tasks.penalty()
    with pytest.raises(RuntimeError, match="penalty\\(\\) was called already. Start the next"):
        tasks.penalty()
    with pytest.raises(RuntimeError, match="these tasks are done"):
        tasks.add(nn.Identity(), support=(torch.rand(2, 2),) * 2, query=(torch.rand(2, 2),) * 2)


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_a_retained_graph_serves_the_penalty(lam: float) -> None:
    """Also where λ is annealed from 0: there is always something to take back."""
    model, batch = contracts.net(), contracts.regression_batch()
    tasks = regularizer(model, lam=lam).collect()
    for support, query in contracts.tasks_of(batch):
        fmodel = adapt(model, *support)
        (mse_loss(fmodel(query[0]), query[1]) / len(batch)).backward(retain_graph=True)
        tasks.add(fmodel, support=support, query=query)
    tasks.penalty().backward()
    twin = contracts.net()
    engines(twin, regularizer(twin, lam=lam), batch).loss.backward()
    close(model.body.weight.grad, twin.body.weight.grad, 1e-10)


def test_backward_before_the_penalty_is_noticed() -> None:
    model, batch = contracts.net(), contracts.regression_batch()
    tasks = regularizer(model).collect()
    for support, query in contracts.tasks_of(batch):
        fmodel = adapt(model, *support)
        mse_loss(fmodel(query[0]), query[1]).backward()
        tasks.add(fmodel, support=support, query=query)
    with pytest.raises(
        RuntimeError, match=r"backward\(\) has passed through task \d's inner loop already"
    ):
        tasks.penalty()


@pytest.mark.unchecked
def test_own_losses_that_do_not_fit_are_refused() -> None:
    model = contracts.net()
    support, query = contracts.tasks_of(contracts.regression_batch())[0]
    fmodel = adapt(model, *support)
    for loss, kind, told in (
        (0.5, TypeError, "loss must be the task's own loss, a tensor of one number, got float"),
        (fmodel(query[0]), TypeError, r"a tensor of one number, got \[6, 3\]"),
        (torch.zeros(()), ValueError, "loss carries no gradient. Pass what you called backward"),
    ):
        with pytest.raises(kind, match=told):
            regularizer(model).collect().add(fmodel, support=support, query=query, loss=loss)


def test_own_losses_go_with_backward_and_only_with_it() -> None:
    model = contracts.net()
    pairs = contracts.tasks_of(contracts.regression_batch())
    for given, call, told in (
        (
            (0, 1, 2),
            "penalty",
            r"their own loss, which penalty\(\) leaves out: call tasks.backward",
        ),
        ((0, 1), "backward", r"task 2 has none: add\(\.\.\., loss=loss\)"),
        ((), "backward", "task 0 has none"),
    ):
        tasks = regularizer(model).collect()
        for i, (support, query) in enumerate(pairs[:3]):
            fmodel = adapt(model, *support)
            loss = mse_loss(fmodel(query[0]), query[1]) if i in given else None
            tasks.add(fmodel, support=support, query=query, loss=loss)
        with pytest.raises(RuntimeError, match=told):
            getattr(tasks, call)()
        assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="no task was added"):
        regularizer(model).collect().backward()
    tasks = collected()
    tasks.penalty()
    with pytest.raises(RuntimeError, match=r"penalty\(\) was called already"):
        tasks.backward()


def test_one_module_for_two_tasks_is_refused() -> None:
    tasks, pair = collected(1), (torch.rand(2, 2), torch.rand(2, 3))
    model = contracts.net()
    tasks.add(model, support=pair, query=pair)
    with pytest.raises(
        ValueError, match="predict is the very model of a task that was added before"
    ):
        tasks.add(model, support=pair, query=pair)


def test_the_same_samples_for_two_tasks_are_told() -> None:
    """Another model, made of the same task once more: each would answer for the other."""
    model = contracts.net()
    support, query = contracts.tasks_of(contracts.regression_batch())[0]
    tasks = collected(3)
    tasks.add(adapt(model, *support), support=support, query=query)
    with pytest.warns(
        UserWarning, match="task 4 has the very samples of task 3: the same task was"
    ):
        tasks.add(adapt(model, *support), support=support, query=query)
    tasks.add(adapt(model, *support), support=(support[0], 2 * support[1]), query=query)  # another


def on_meta(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """On a device that is always there."""
    return pair[0].to("meta"), pair[1].to("meta")


def test_mixed_devices_are_refused() -> None:
    pairs = contracts.tasks_of(contracts.regression_batch())
    support, query = pairs[2]
    model = contracts.net()
    for one, other, task in (
        (on_meta(support), on_meta(query), 2),
        (on_meta(support), query, 2),
        ((support[0], on_meta(support)[1]), query, 2),
    ):
        tasks = collected(2)
        tasks.add(adapt(model, *support), support=one, query=other)
        told = (
            f"must be on one device, got cpu and meta; the first that differs is task {task}. Move"
        )
        with pytest.raises(ValueError, match=told):
            tasks.penalty()


def test_a_regularizer_elsewhere_is_refused() -> None:
    model = contracts.net()
    tasks = regularizer(model).to("meta").collect()
    for support, query in contracts.tasks_of(contracts.regression_batch()):
        tasks.add(adapt(model, *support), support=support, query=query)
    told = r"the tasks are on cpu, but the regularizer's .*relation.weight not: move it, reg.to\('cpu'\)"
    with pytest.raises(ValueError, match=told):
        tasks.penalty()


def test_a_model_that_answers_elsewhere_is_refused() -> None:
    support, query = contracts.tasks_of(contracts.regression_batch())[2]
    tasks, weight = collected(2), torch.ones(2, 3, device="meta", requires_grad=True)
    tasks.add(lambda x: x.to("meta") @ weight.double(), support=support, query=query)
    with pytest.raises(
        ValueError, match="the model of task 2 answers on meta when it is asked .*cpu"
    ):
        tasks.penalty()


X, Y = torch.rand(5, 2).double(), torch.rand(5, 3).double()


@pytest.mark.parametrize(
    ("support", "query", "told"),
    [
        (
            (X, Y[:3]),
            (X, Y),
            r"task 2: support x and y must agree on \[samples\], got \[5, 2\] and \[3",
        ),
        ((X[:0], Y[:0]), (X, Y), "task 2 has an empty support set. Leave this task out"),
        (
            (X[:, :1], Y),
            (X, Y),
            r"support x must have one shape of a sample in all tasks, got .2. in task 0 and .1. in",
        ),
        ((X, Y), (X, Y[:, :2]), "query y must have one shape of a sample in all tasks"),
    ],
)
def test_samples_that_do_not_fit_are_refused(support, query, told: str) -> None:  # type: ignore[no-untyped-def]
    tasks = collected(2)
    tasks.add(lambda x: x, support=support, query=query)
    with pytest.raises(ValueError, match=told):
        tasks.penalty()


@pytest.mark.parametrize("place", ["support", "query"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_refused(place: str, value: float) -> None:
    pairs = {"support": (X, Y), "query": (X, Y)}
    pairs[place] = (torch.full_like(X, value), Y)
    tasks = collected(2)
    tasks.add(lambda x: x, **pairs)
    with pytest.raises(ValueError, match=r"x must be finite, got NaN or infinity in tasks \[2\]"):
        tasks.penalty()


def test_a_model_without_gradient_is_refused() -> None:
    tasks = collected(2)
    support, query = contracts.tasks_of(contracts.regression_batch())[2]
    tasks.add(lambda x: torch.zeros(len(x), 3).double(), support=support, query=query)
    with pytest.raises(
        ValueError, match="predictions of task 2's model carry no gradient. Adapt it"
    ):
        tasks.penalty()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("predict", "told"),
    [
        (
            lambda x: x.sum(),
            r"the model of task 2 must return \[samples, \.\.\.\] with samples = 6, .*got \[\]",
        ),
        (lambda x: "text", "a tensor or a tuple or dict of them, got str"),
        (
            lambda x: x @ torch.ones(2, 4, requires_grad=True).double(),
            r"one shape, got \[\[3\]\] and, of task 2, \[\[4\]\]",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_refused(predict, told: str) -> None:  # type: ignore[no-untyped-def]
    tasks = collected(2)
    support, query = contracts.tasks_of(contracts.regression_batch())[2]
    tasks.add(predict, support=support, query=query)
    with pytest.raises(ValueError, match=told):
        tasks.penalty()


@pytest.mark.unchecked
def test_what_cannot_be_collected_is_refused() -> None:
    pair = (torch.rand(2, 2), torch.rand(2, 3))
    with pytest.raises(
        TypeError, match="predict must be a callable from inputs to predictions, got int"
    ):
        collected(0).add(3, support=pair, query=pair)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'max'"):
        regularizer(contracts.net()).collect("max")
    tasks = collected(2)
    tasks.add(
        lambda x: x, support=(torch.full((2, 2), torch.nan).double(), pair[1].double()), query=pair
    )
    with pytest.raises(ValueError, match="must be finite, got NaN"):
        tasks.penalty()
    tasks = tr.TRLearner(encoder=tr.UpdateEncoder(dim=4)).collect()
    for factor in (1, 2):
        other = (pair[0] + factor, pair[1])
        tasks.add(lambda x, factor=factor: factor * x, support=other, query=other)
    with pytest.raises(ValueError, match="UpdateEncoder looks at what adaptation changed"):
        tasks.penalty()


def test_a_forgotten_penalty_is_told() -> None:
    model = contracts.net()
    support, query = contracts.tasks_of(contracts.regression_batch())[0]
    with (
        pytest.warns(UserWarning, match=r"penalty\(\) was never called"),
        regularizer(model).collect() as tasks,
    ):
        tasks.add(adapt(model, *support), support=support, query=query)
    with warnings.catch_warnings(), regularizer(model).collect() as tasks:
        warnings.simplefilter("error")
        for support, query in contracts.tasks_of(contracts.regression_batch()):
            tasks.add(adapt(model, *support), support=support, query=query)
        tasks.penalty()
    assert len(tasks) == 4


def test_whole_numbers_are_averaged_in_the_precision_of_the_regularizer() -> None:
    """Models of a loop have no precision that we know of, and tokens have none at all."""
    reg = tr.TRLearner(tr.InputEncoder(None, dim=2), loss_fn=cross_entropy).double()
    tasks, g = reg.collect(), torch.Generator().manual_seed(0)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    wanted = []
    for factor in (1.0, 2.0, 3.0):
        x, y = torch.randint(1000, (7, 2), generator=g), torch.tensor([0, 1, 0, 1, 0, 1, 0])
        wanted.append(x.double().mean(0))
        tasks.add(lambda x, f=factor: f * scale * x, support=(x, y), query=(x, y))
    tasks.penalty()
    close(tasks.term.embeddings, torch.stack(wanted), 1e-12)
