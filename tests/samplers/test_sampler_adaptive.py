"""The sampler as a whole: three ways in, going on after a stop, and what it must not touch."""

import copy
import io
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import contracts
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

import trlearner as tr
from trlearner.engines.choose import ENGINES
from trlearner.samplers.draw import floored
from trlearner.samplers.lookahead import lookahead
from trlearner.samplers.sampler import TaskSampler

TASKS, SIZE = 12, 4
IDS = [f"task {i}" for i in range(TASKS)]
UNIFORM = torch.full((TASKS,), 1 / TASKS, dtype=torch.float64)
POOL = contracts.regression_batch(tasks=TASKS)


def batch_of(ids: list[str]) -> tr.TaskBatch:
    batch = POOL[[IDS.index(name) for name in ids]]
    return tr.TaskBatch(batch.support, batch.query, ids=ids)


def made(kind: str = "adaptive", seed: int = 0, **options: object) -> TaskSampler:
    g = torch.Generator().manual_seed(seed)
    options = {"task_ids": IDS, "batch_size": SIZE, "generator": g, **options}
    if kind == "uniform":
        return tr.samplers.UniformTaskSampler(**options)
    if kind == "hard":
        return tr.samplers.HardTaskSampler(**{"warmup": 3, "every": 2, **options})
    return tr.AdaptiveTaskSampler(**{"warmup": 3, "every": 2, "lr": 0.2, **options})


def convinced(sampler: TaskSampler) -> TaskSampler:
    """Its network has seen, often enough to be believed, that a high first score lowers the loss."""
    assert isinstance(sampler, tr.AdaptiveTaskSampler)
    g, scores = torch.Generator().manual_seed(7), len(sampler.scores)
    for _ in range(24):
        seen = torch.randn(SIZE, scores, generator=g)
        sampler._trainer.learn(seen, -seen[:, 0], torch.full((SIZE,), 1 / SIZE))
    assert sampler._trainer.trust > 0.5
    return sampler


def maml(engine: str = "batched") -> tr.Learner:
    return contracts.learner("maml", contracts.net(), engine)


def endless(sampler: TaskSampler) -> Iterator[list]:
    while True:
        yield from sampler


def train(
    sampler: TaskSampler, learner: tr.Learner, steps: int, batches: Iterator | None = None
) -> list[list]:
    """A plain loop; the ids that it trained on."""
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    seen = []
    for ids in itertools.islice(batches or endless(sampler), steps):
        batch = batch_of(ids)
        optimizer.zero_grad()
        answers = learner.adapt(batch.support, mse_loss)(batch.query.x)
        (answers - batch.query.y).square().mean().backward()
        sampler.update(learner, batch, reuse=True)
        optimizer.step()
        seen.append(list(ids))
    return seen


@pytest.mark.parametrize("kind", ["adaptive", "hard", "uniform"])
def test_warm_up_is_exactly_uniform(kind: str) -> None:
    sampler, learner = made(kind, warmup=5) if kind != "uniform" else made(kind), maml()
    if kind == "adaptive":
        convinced(sampler)
    for _ in range(5):
        assert torch.equal(sampler.weights, UNIFORM)
        train(sampler, learner, 1)
    uniform = torch.allclose(sampler.weights, sampler.weights.mean())
    assert uniform == (kind == "uniform")


@pytest.mark.full
def test_every_task_stays_in_reach() -> None:
    sampler = convinced(made(lr=1.0, decay=1e-3, every=1, floor=0.3))
    train(sampler, maml(), 30)
    assert sampler.weights.min() >= 0.3 / TASKS - 1e-12
    assert sampler.weights.max() <= 1 / SIZE + 1e-12
    assert sampler.weights.max() > 2 * sampler.weights.min()


@pytest.mark.full
def test_frequencies_match_weights() -> None:
    sampler = convinced(made(batches=4000))
    train(sampler, maml(), 20)
    p = sampler.weights
    assert p.max() > 1.2 * p.min()
    counts = torch.zeros(TASKS)
    for ids in sampler:
        assert len(set(ids)) == SIZE
        counts[[IDS.index(name) for name in ids]] += 1
    assert stats.chisquare(counts.numpy(), (4000 * SIZE * p).numpy()).pvalue > 0.01


@pytest.mark.full
@pytest.mark.parametrize("engine", ["loop", "batched", "higher", "traced"])
@pytest.mark.parametrize("every", [1, 3])
def test_it_learns_from_the_look_ahead(engine: str, every: int) -> None:
    """Its effects are the look-ahead's gradient over the step that was really taken."""
    learner, sampler, found = maml(engine), made(every=every, warmup=0), []
    sampler._trainer.learn = lambda scores, effects, weights: found.append((effects, weights))
    twin, wanted, before = maml("batched"), [], None
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05) for one in (learner, twin)]
    ids = [IDS[:4], IDS[4:8], IDS[8:], IDS[2:6], IDS[6:10], IDS[1:5], IDS[:4]]
    for step, names in enumerate(ids):
        batch = batch_of(names)
        if step > 0 and (step + 1) % every == 0:
            wanted.append((step, before))
        before = (copy.deepcopy(twin), batch)
        for one, optimizer in zip((learner, twin), optimizers, strict=True):
            optimizer.zero_grad()
            answers = one.adapt(batch.support, mse_loss)(batch.query.x)
            (answers - batch.query.y).square().mean().backward()
        sampler.update(learner, batch, reuse=step % 2 == 0)
        for optimizer in optimizers:
            optimizer.step()
    uniform = torch.full((SIZE,), 1 / SIZE, dtype=torch.float64)
    for (effects, weights), (step, (then, batch)) in zip(found, wanted, strict=True):
        truth = lookahead(
            ENGINES["batched"], then, batch, batch_of(ids[step]), uniform, mse_loss, 0.05
        )
        contracts.close(0.05 * effects, truth, 1e-9)
        assert torch.allclose(weights.double(), uniform)


@pytest.mark.parametrize("kind", ["uniform", *contracts.later("adaptive", "hard")])
@pytest.mark.parametrize("stop", [1, *contracts.later(2, 3, 4, 8)])
def test_a_resumed_run_draws_the_same_tasks(kind: str, stop: int) -> None:
    def fresh() -> TaskSampler:
        return convinced(made(kind)) if kind == "adaptive" else made(kind)

    sampler, learner = fresh(), maml()
    whole = train(sampler, learner, 12)
    assert torch.equal(sampler.weights, UNIFORM) == (kind == "uniform")
    first, young = fresh(), maml()
    head = train(first, young, stop)
    saved = io.BytesIO()
    torch.save({"sampler": first.state_dict(), "learner": young.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    second, old = made(kind, seed=9), maml()
    second.load_state_dict(state["sampler"])
    old.load_state_dict(state["learner"])
    assert head + train(second, old, 12 - stop) == whole
    assert torch.equal(second.weights, sampler.weights)


@pytest.mark.parametrize("kind", ["uniform", "hard", "adaptive"])
def test_a_state_of_the_end_of_an_epoch_goes_on_with_a_whole_one(kind: str) -> None:
    sampler, learner = made(kind, batches=2), maml()
    for ids in sampler:
        sampler.update(learner, batch_of(ids))
    again = made(kind, batches=2)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(sampler)
    assert len(list(again)) == 2


@pytest.mark.parametrize("kind", ["hard", "adaptive"])
def test_after_a_restart_a_stream_asks_for_the_learner(kind: str) -> None:
    sampler, learner = made(kind, task_ids=None, every=1, warmup=0), maml()
    for _ in range(3):
        sampler.update(learner, sampler.reweight(POOL, learner))
    again = made(kind, task_ids=None, every=1, warmup=0)
    again.load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match=r"learner must be given to the first reweight after load"):
        again.reweight(POOL)
    wanted = sampler.reweight(POOL, learner)
    assert torch.equal(again.reweight(POOL, learner).support.x, wanted.support.x)


@pytest.mark.full
def test_looking_does_not_change_the_course() -> None:
    sampler, other = made(), made()
    seen, looked, learner, twin = [], [], maml(), maml()
    one, two = endless(sampler), endless(other)
    for _ in range(8):
        seen += train(sampler, learner, 1, one)
        looked += train(other, twin, 1, two)
        other.state_dict()
        other.summary()
        assert other.weights is not None
    assert seen == looked


class Tasks(Dataset):
    def __getitem__(self, name: str) -> str:
        return name


def loader(sampler: TaskSampler, workers: int) -> Iterator[list]:
    while True:
        yield from DataLoader(
            Tasks(),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=list,
            prefetch_factor=2 if workers else None,
        )


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_what_was_fetched_ahead_comes_again(workers: int) -> None:
    whole = train(sampler := made(batches=8), maml(), 14, loader(sampler, workers))
    first, young = made(batches=8), maml()
    head = train(first, young, 5, loader(first, workers))
    second = made(batches=8, seed=5)
    second.load_state_dict(first.state_dict())
    assert head + train(second, young, 9, loader(second, workers)) == whole


KILLED = """
import os, sys, torch
sys.path[:0] = {paths!r}
import samplers.test_sampler_adaptive as t
path, steps = sys.argv[1], int(sys.argv[2])
sampler, learner = t.made(seed=3), t.maml()
try:
    state = torch.load(path, weights_only=True)
    sampler.load_state_dict(state["sampler"]); learner.load_state_dict(state["learner"])
    done = state["done"]
except FileNotFoundError:
    done = []
batches = t.endless(sampler)
while len(done) < steps:
    done += t.train(sampler, learner, 1, batches)
    state = {{"sampler": sampler.state_dict(), "learner": learner.state_dict(), "done": done}}
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)  # whole whenever the process is killed
    print(len(done), flush=True)
print(done)
"""


@pytest.mark.full
def test_killed_and_resumed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    code = KILLED.format(
        paths=[os.path.dirname(os.path.dirname(__file__)), os.path.dirname(contracts.__file__)]
    )

    def start(path: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code, path, "9"], stdout=subprocess.PIPE, text=True
        )

    process = start(str(tmp_path / "killed"))
    assert process.stdout is not None
    while process.stdout.readline().strip() != "5":
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    outputs = [start(str(tmp_path / name)).communicate()[0] for name in ("killed", "whole")]
    resumed, whole = (text.strip().splitlines() for text in outputs)
    assert resumed[-1] == whole[-1]
    assert len(resumed) < len(whole)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 3)).double()
    learner = tr.MAML(model, lr=0.1, steps=1)
    torch.set_rng_state(before)
    sampler = made(every=1, warmup=1, share=0.5)
    for ids in itertools.islice(sampler, 3):
        sampler.update(learner, batch_of(ids))
    sampler.reweight(POOL, learner)
    made("hard", every=1).update(learner, batch_of(IDS[:4]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.full
def test_a_stream_keeps_the_likelier() -> None:
    sampler = convinced(made(task_ids=None, every=1, scores=("difficulty",)))
    learner = maml()
    plain = sampler.reweight(POOL)
    assert len(plain) == SIZE
    for _ in range(4):
        sampler.update(learner, plain)
    logits = sampler.logits_of(POOL, learner)
    counts = torch.zeros(TASKS)
    for _ in range(300):
        kept = sampler.reweight(POOL)
        assert len(kept) == SIZE
        for x in kept.support.x:
            counts[[bool(torch.equal(x, y)) for y in POOL.support.x].index(True)] += 1
    p = floored(logits.double(), sampler.floor, 1 / SIZE)
    assert p.max() > 1.2 * p.min()
    assert stats.chisquare(counts.numpy(), (300 * SIZE * p).numpy()).pvalue > 0.01


@pytest.mark.full
def test_importance_weights_keep_the_mean() -> None:
    sampler, learner = convinced(made(importance=True, batches=3000)), maml()
    train(sampler, learner, 10)
    assert sampler.weights.max() > 1.2 * sampler.weights.min()
    values = torch.linspace(-1, 2, TASKS, dtype=torch.float64).exp()
    found = []
    for ids in sampler:
        weights = sampler.weigh(learner, batch_of(ids))
        found.append((weights * values[[IDS.index(name) for name in ids]]).sum())
    mean, spread = torch.stack(found).mean(), torch.stack(found).std()
    assert abs(mean - values.mean()) < 4 * spread / len(found) ** 0.5
    stream = made(task_ids=None, importance=True)
    kept = stream.reweight(POOL)
    assert torch.allclose(stream.weigh(learner, kept), torch.full((SIZE,), 1 / SIZE).double())


def test_weights_alone() -> None:
    sampler = convinced(made(task_ids=None, batch_size=None, every=1, warmup=1))
    learner = maml()
    assert torch.equal(sampler.weigh(learner, POOL), UNIFORM)
    for _ in range(6):
        weights = sampler.weigh(learner, POOL)
        sampler.update(learner, POOL)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.min() >= 0.1 / TASKS
    assert weights.max() > 1.05 / TASKS


def regularizer(sampler: TaskSampler | None, **options: object) -> tr.TRLearner:
    torch.manual_seed(0)
    return tr.TRLearner(tr.InputEncoder(None, dim=2), sampler=sampler, **options).double()


@pytest.mark.full
@pytest.mark.parametrize("engine", ["batched", "loop", "traced"])
def test_inside_trlearner_it_sees_every_step(engine: str) -> None:
    """As if updated between backward and the optimizer's step."""
    by_hand, by_itself = convinced(made()), convinced(made())
    learner, twin = maml(engine), maml(engine)
    reg = regularizer(by_itself, lam=0.0)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    batches = endless(by_itself)
    seen = []
    for _ in range(9):
        ids = next(batches)
        optimizer.zero_grad()
        reg(twin, batch_of(ids)).loss.backward()
        optimizer.step()
        seen.append(list(ids))
    assert train(by_hand, learner, 9) == seen
    assert torch.allclose(by_hand.weights, by_itself.weights, atol=1e-6)
    assert not torch.allclose(by_itself.weights, by_itself.weights.mean())
    with torch.no_grad():
        reg(twin, batch_of(IDS[:4]))
    assert by_itself.updates == 9


@pytest.mark.parametrize("engine", ["batched", *contracts.later("loop", "higher", "traced")])
def test_inside_trlearner_weights_multiply_losses(engine: str) -> None:
    sampler = convinced(made(task_ids=None, batch_size=None, every=1, warmup=0))
    reg, learner = regularizer(sampler), maml(engine)
    for _ in range(4):
        reg(learner, POOL).loss.backward()
    weights = sampler.weigh(learner, POOL)
    out = reg(learner, POOL)
    each = (out.predictions - POOL.query.y).square().mean((1, 2))
    contracts.close(out.task_loss, (weights * each).sum(), 1e-12)
    assert not torch.allclose(weights, weights.mean())


def test_validation_is_not_weighted() -> None:
    sampler = made(importance=True)
    reg = regularizer(sampler).eval()
    unnamed = contracts.regression_batch(tasks=SIZE)
    expected = regularizer(None).eval()(maml(), unnamed).task_loss
    assert torch.equal(reg(maml(), unnamed).task_loss, expected)


def test_a_refused_batch_does_not_count() -> None:
    sampler = made()
    with pytest.raises(ValueError, match="ids must be among task_ids"):
        sampler.update(maml(), tr.TaskBatch(POOL.support, POOL.query, ids=range(TASKS)))
    assert sampler.updates == 0


def test_without_a_sampler_nothing_changes() -> None:
    learner = maml()
    plain = regularizer(None)(learner, POOL)
    told = regularizer(made(task_ids=None))(learner, POOL)
    assert torch.equal(plain.loss, told.loss)


def test_it_takes_the_loss_of_the_regularizer() -> None:
    sampler = made()
    regularizer(sampler, loss_fn=nn.functional.l1_loss)
    assert sampler.loss_fn is nn.functional.l1_loss


@pytest.mark.unchecked
def test_other_samplers_are_none() -> None:
    with pytest.raises(TypeError, match="sampler must be a task sampler.*, got SequentialSampler"):
        regularizer(torch.utils.data.SequentialSampler([1]))  # type: ignore[arg-type]


def test_the_summary_is_for_tensorboard() -> None:
    sampler = made()
    assert set(sampler.summary()) == {"weights", "weight entropy", "draws", "trust"}
    train(sampler, maml(), 6)
    found = sampler.summary()
    assert set(found) == {
        "weights",
        "weight entropy",
        "draws",
        "trust",
        "scores/diversity",
        "scores/entropy",
        "scores/difficulty",
    }
    assert found["draws"].sum() == 6 * SIZE
    assert found["weight entropy"].ndim == 0 and 0 < found["weight entropy"] <= 1
    stream = made(task_ids=None, batch_size=None, every=1)
    for _ in range(3):
        stream.update(maml(), POOL)
    assert set(stream.summary()) == {
        "trust",
        "scores/diversity",
        "scores/entropy",
        "scores/difficulty",
    }
    assert made("uniform").summary()["weight entropy"] == pytest.approx(1.0)


def test_held_out_tasks_judge() -> None:
    calls = []

    def held_out() -> tr.TaskBatch:
        calls.append(1)
        return POOL

    sampler = made(held_out=held_out)
    train(sampler, maml(), 6)
    assert len(calls) == 3
    reg, learner = regularizer(made(held_out=POOL)), maml()
    for ids in itertools.islice(reg.sampler, 3):
        reg(learner, batch_of(ids)).loss.backward()
    assert len(reg.sampler.summary()) == 7


@pytest.mark.full
def test_a_copy_is_a_sampler_of_its_own() -> None:
    sampler, learner = made(), maml()
    train(sampler, learner, 4)
    twin = copy.deepcopy(sampler)
    assert train(twin, copy.deepcopy(learner), 6) == train(sampler, learner, 6)


@pytest.mark.full
def test_a_score_can_be_chosen() -> None:
    names = ("compactness", "separability", "enrichment")
    sampler = tr.AdaptiveTaskSampler(
        range(TASKS), SIZE, scores=names[2:], every=1, extractor=(net := contracts.net()).body
    )
    for ids in sampler:
        batch = tr.TaskBatch(POOL[ids].support, POOL[ids].query, ids=ids)
        sampler.update(contracts.learner("maml", net, "batched"), batch)
    assert sampler.summary()["scores/enrichment"].std() > 0


def test_a_foreign_extractor_is_read_as_it_is() -> None:
    """Features are those of its parameters at the look, whatever engine the learner trains on."""
    seen = {}
    for engine in ("traced", "batched"):
        torch.manual_seed(0)
        g = nn.Linear(contracts.INPUTS, 3).double()
        sampler, learner = made(every=1, extractor=g), maml(engine)
        train(sampler, learner, 4)
        with torch.no_grad():
            g.weight[1:].zero_()
        train(sampler, learner, 4)
        seen[engine] = sampler.summary()
    assert seen["traced"]["scores/diversity"].std() > 1e-3
    for name, value in seen["batched"].items():
        contracts.close(seen["traced"][name], value, 1e-9)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 13}, "task_ids must be at least batch_size=13 tasks.*, got 12."),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0."),
        ({"batch_size": None}, "batch_size must be a whole number of at least 1, got None."),
        ({"task_ids": ["a", "b", "a", "c"]}, "task_ids must be distinct, got 'a' twice."),
        ({"floor": 0.0}, "floor must be a finite number above 0 and of at most 1, got 0.0."),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1."),
        ({"every": 0}, "every must be a whole number of at least 1, got 0."),
        ({"share": 2.0}, "share must be a finite number above 0 and of at most 1, got 2.0."),
        ({"decay": 0.0}, "decay must be a finite number above 0, got 0.0."),
        ({"lr": -1.0}, "lr must be a finite number above 0, got -1.0."),
        ({"batches": 0}, "batches must be a whole number of at least 1, or None, got 0."),
        ({"scores": ()}, r"scores must be a sequence of distinct names, got \(\)."),
        ({"scores": "entropy"}, "scores must be a sequence of distinct names, got 'entropy'."),
        ({"scores": ("fun",)}, r"scores must be among .*, got \['fun'\]. Give one of your own"),
    ],
)
def test_settings_are_checked(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        made(**options)


def test_batches_are_checked() -> None:
    sampler, learner = made(), maml()
    with pytest.raises(ValueError, match="must say which tasks it holds, got ids=None. Build it"):
        sampler.update(learner, POOL)
    strange = tr.TaskBatch(POOL.support, POOL.query, ids=range(TASKS))
    with pytest.raises(ValueError, match=r"must be among task_ids, got \[0, 1, 2\]. Pass on"):
        sampler.update(learner, strange)
    train(sampler, learner, 1)
    for p in learner.parameters():
        p.grad = None
    with pytest.raises(ValueError, match="reuse=True takes .* Call update after loss.backward"):
        sampler.update(learner, batch_of(IDS[:4]), reuse=True)


def test_ways_in_are_not_mixed_up() -> None:
    stream, weigher = made(task_ids=None), made(task_ids=None, batch_size=None)
    with pytest.raises(TypeError, match=r"only a sampler of a finite set can be iterated"):
        iter(stream).__next__()
    with pytest.raises(TypeError, match="an endless stream has no length"):
        len(stream)
    with pytest.raises(ValueError, match="weights belong to a finite set of tasks"):
        stream.weights  # noqa: B018
    with pytest.raises(ValueError, match="reweight keeps batch_size of the candidates, got batch_"):
        weigher.reweight(POOL)
    with pytest.raises(ValueError, match="candidates must be at least batch_size=4 tasks.*got 2"):
        stream.reweight(POOL[:2])
    with pytest.raises(ValueError, match="importance weights need the batch as reweight"):
        made(task_ids=None, importance=True).weigh(maml(), POOL)


def test_states_are_checked() -> None:
    with pytest.raises(ValueError, match="the state must be of a sampler of the same task_ids"):
        made(task_ids=IDS[:8]).load_state_dict(made().state_dict())
    with pytest.raises(ValueError, match="the state must be of a sampler of the same scores"):
        made(scores=("entropy",)).load_state_dict(made().state_dict())


# ---- what it leaves behind in the user's model --------------------------------------------------


FEW = contracts.regression_batch(tasks=3, support=2)


def quick(engine: str) -> tr.Learner:
    return contracts.learner("maml", contracts.net(), engine, steps=1)


def hooks_of(learner: tr.Learner) -> list[str]:
    """The parameters that anybody has put a hook on."""
    return [
        name
        for name, p in learner.named_parameters()
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
    ]


def backward(loss: Tensor, learner: tr.Learner) -> None:
    loss.backward()


def grad(loss: Tensor, learner: tr.Learner) -> None:
    assert torch.autograd.grad(loss, list(learner.parameters()))


def never(loss: Tensor, learner: tr.Learner) -> None:
    """A step that is thrown away."""


@pytest.mark.parametrize("finish", [backward, *contracts.later(grad, never)])
@pytest.mark.parametrize("engine", contracts.BATCHED_FIRST)
def test_no_hook_outlives_a_step(engine: str, finish) -> None:  # type: ignore[no-untyped-def]
    """The sampler looks at every step, and any other gradient of the parameters is left alone."""
    sampler = tr.AdaptiveTaskSampler(every=2)
    reg, learner = regularizer(sampler), quick(engine)
    parameters = list(learner.parameters())
    for _ in range(12):
        finish(reg(learner, FEW).loss, learner)
        assert hooks_of(learner) == []
        # The user's own gradients, in a graph that has nothing to do with the step.
        own = sum(p.square().sum() for p in parameters)
        found = torch.autograd.grad(own, parameters)
        assert all(torch.equal(g, 2 * p) for g, p in zip(found, parameters, strict=True))
    assert "scores/difficulty" in sampler.summary()  # it has looked


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_sampler_that_is_gone_disturbs_nobody(engine: str) -> None:
    sampler = tr.AdaptiveTaskSampler(every=1)
    reg, learner = regularizer(sampler), quick(engine)
    for _ in range(2):
        loss = reg(learner, FEW).loss
    expected = torch.autograd.grad(loss, list(learner.parameters()), retain_graph=True)
    del sampler
    reg.sampler = None
    found = torch.autograd.grad(loss, list(learner.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert hooks_of(learner) == []
    assert reg(learner, FEW).loss.isfinite()


@pytest.mark.parametrize("engine", ["loop", *contracts.later("higher", "channels_last")])
def test_training_goes_on_past_the_first_look(engine: str) -> None:
    """With the sampler's own defaults, whose first look comes with the tenth step."""
    torch.manual_seed(0)
    learner = tr.MAML(nn.Linear(2, 3).double(), lr=0.1, steps=1, engine=engine)
    sampler = tr.AdaptiveTaskSampler()
    reg = regularizer(sampler)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        reg(learner, FEW).loss.backward()
        optimizer.step()
    assert sampler.updates == 12
    assert hooks_of(learner) == []


def test_the_sampler_reads_the_gradient_of_its_step_alone() -> None:
    """A loss of the user's own, added to the step's, is not mistaken for the batch's gradient."""
    seen = []
    for decay in (0.0, 1.0):
        sampler = convinced(tr.AdaptiveTaskSampler(every=1, warmup=0))
        reg, learner = regularizer(sampler, lam=0.0), quick("batched")
        for _ in range(2):
            learner.zero_grad()
            loss = reg(learner, FEW).loss
            (loss + decay * sum(p.square().sum() for p in learner.parameters())).backward()
        seen.append(sampler.weigh(learner, FEW))
    assert not torch.allclose(seen[0], seen[0].mean())
    assert torch.equal(*seen)
