"""`RelationMonitor`: what it writes, read back from event files, against the tensors."""

import copy
import io
import math
import pathlib
import time
from dataclasses import replace
from typing import Any

import contracts
import numpy as np
import pytest
import reference
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torch.nn.functional import mse_loss
from torch.utils.tensorboard import SummaryWriter

import trlearner as tr
from trlearner.diagnostics.monitor import history, monitor
from trlearner.diagnostics.monitor.heatmap import heatmap
from trlearner.relations.similarity import head_relations

FAMILIES = {"a": "even", "b": "odd", "c": "even", "d": "odd"}


class Memory:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.images: dict[str, list[tuple[int, np.ndarray]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.curves.setdefault(tag.removeprefix("trlearner."), []).append((step, value))

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.setdefault(tag.removeprefix("trlearner."), []).append((step, image))

    def last(self, tag: str) -> float:
        return self.curves[tag][-1][1]


def named(batch: tr.TaskBatch, ids: str = "abcd") -> tr.TaskBatch:
    return tr.TaskBatch(batch.support, batch.query, ids=list(ids), ways=batch.ways)


def parts(engine: str = "batched", **options: Any) -> tuple[tr.Learner, tr.TRLearner]:
    net = contracts.net()
    made = contracts.learner("maml", net, engine)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"features": contracts.INPUTS, "targets": contracts.OUTPUTS}
        encoder = tr.LabelledEncoder(None, dim=5, **sizes)
    reg = tr.TRLearner(encoder=encoder, lam=0.3, **options).double()
    return made, reg


def trained(
    learner: tr.Learner, reg: tr.TRLearner, steps: int, seed: int = 0
) -> list[tuple[tr.Output, torch.Tensor]]:
    """Steps of plain gradient descent; what each found, and the heads with which it did."""
    found = []
    for step in range(steps):
        heads = reg.relation.weight.detach().clone()
        out = reg(learner, named(contracts.regression_batch(seed + step)))
        out.loss.backward()
        with torch.no_grad():
            for p in [*learner.parameters(), *reg.parameters()]:
                if p.grad is not None:
                    p -= 0.01 * p.grad
                    p.grad = None
        found.append((out, heads))
    return found


def test_curves_are_what_the_tensors_say() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=2, families=FAMILIES, share=1)
    found = trained(learner, reg, 5)
    for name in ("loss/own", "relations/mean", "truth/purity"):
        assert [step for step, _ in writer.curves[name]] == [0, 2, 4]
    for at, step in enumerate((0, 2, 4)):
        out, heads = found[step]
        m, w = out.relations.tolist(), out.weights.tolist()
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]

        def value(tag: str, at: int = at) -> float:
            return writer.curves[tag][at][1]

        assert value("loss/own") == out.task_loss.item()
        assert value("loss/relation") == out.relation_loss.item()
        assert value("loss/lambda") == 0.3
        expected = 0.3 * out.relation_loss.item() / out.task_loss.item()
        assert value("loss/ratio") == pytest.approx(expected)
        assert value("relations/mean") == pytest.approx(sum(m[i][j] for i, j in pairs) / 12)
        negative = sum(m[i][j] < 0 for i, j in pairs) / 12
        assert value("relations/negative_share") == pytest.approx(negative)
        entropy = [-sum(x * math.log(x) for x in row if x > 0) for row in w]
        assert value("weights/row_entropy") == pytest.approx(sum(entropy) / 4)
        assert value("weights/neighbours") == pytest.approx(sum(map(math.exp, entropy)) / 4)
        for k in range(4):
            assert value(f"heads/norm_{k}") == pytest.approx(heads[k].norm().item())
        each = head_relations(out.embeddings, heads).numpy()
        spread = np.mean([each[:, i, j].std() for i, j in pairs])
        assert value("heads/disagreement") == pytest.approx(spread)
        nearest = [max((j for j in range(4) if j != i), key=lambda j: m[i][j]) for i in range(4)]
        pure = np.mean([i % 2 == j % 2 for i, j in enumerate(nearest)])
        assert value("truth/purity") == pure


@pytest.mark.parametrize("engine", contracts.BATCHED_FIRST)
def test_the_cosine_is_that_of_the_two_gradients(engine: str) -> None:
    learner, reg = parts(engine)
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    batch = named(contracts.regression_batch())
    reg(learner, batch)
    plain, other = parts("loop")
    weights = list(plain.parameters())
    own = other(plain, batch)
    zero = tr.TRLearner(encoder=other.encoder, lam=0.0)(plain, batch)
    whole = torch.autograd.grad(own.loss, weights)
    alone = torch.autograd.grad(zero.loss, weights)
    a = torch.cat([g.flatten() for g in alone])
    b = torch.cat([(w - g).flatten() for w, g in zip(whole, alone, strict=True)])
    cosine = (a @ b / (a.norm() * b.norm())).item()
    assert writer.last("gradient/cosine") == pytest.approx(cosine, abs=1e-8)
    assert writer.last("gradient/ratio") == pytest.approx((b.norm() / a.norm()).item(), abs=1e-8)


def memory_answer(**options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        memory = tr.TaskMemory(contracts.learner("maml", contracts.net(), "batched"), **options)
    memory.remember(contracts.regression_batch(1, tasks=6), steps=2, held_out=0.0)
    return memory.adapt(contracts.regression_batch(2).support)


def test_a_memorys_contributors_are_shown() -> None:
    answer = memory_answer(neighbours=3, share=0.75)
    watching = tr.RelationMonitor(writer := Memory())
    watching.step = 7
    watching.memory(answer)
    watching.memory(answer, step=9)
    assert [step for step, _ in writer.images["memory/coefficients"]] == [7, 9]
    assert writer.curves["memory/share"] == [(7, 0.75), (9, 0.75)]
    weights = answer.weights.mean(2).abs()  # over outputs
    p = weights / weights.sum(1, keepdim=True)
    effective = (-(p * p.log()).sum(1)).exp().mean().item()
    assert writer.last("memory/contributors") == pytest.approx(effective, rel=1e-6)


def test_where_no_model_contributes_only_the_share_is_written() -> None:
    answer = memory_answer(share=0.0)
    tr.RelationMonitor(writer := Memory()).memory(answer)
    assert (list(writer.curves), writer.images) == (["memory/share"], {})


def test_dropout_draws_the_same_for_both_gradients() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Dropout(0.5), torch.nn.Linear(20, 3))
    learner = tr.MAML(net.double(), lr=0.1, steps=1, engine="loop")
    _, reg = parts()
    reg.lam = 1e-9  # the two gradients are one, unless they drew differently
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    reg(learner, named(contracts.regression_batch()))
    assert writer.last("gradient/ratio") < 1e-6


@pytest.mark.full
@pytest.mark.parametrize("engine", ["batched", "traced", "loop"])
def test_training_is_the_same_to_the_last_bit(engine: str) -> None:
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        learner, reg = parts(engine, queries=0.5)
        if watched:
            reg.monitor = tr.RelationMonitor(Memory(), every=1, share=1)
        trained(learner, reg, 3)
        results.append([p.detach().clone() for p in (*learner.parameters(), *reg.parameters())])
        results[-1].append(torch.rand(3))  # the global random state
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_drift_is_the_change_of_m_on_the_tasks_of_the_first_look() -> None:
    learner, reg = parts()
    first = named(contracts.regression_batch(0))
    before = reg.relate(learner, first)
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=4, share=1)
    trained(learner, reg, 4)
    now = reg.relate(learner, first)
    trained(learner, reg, 1, seed=9)
    expected = (now - before)[~torch.eye(4, dtype=torch.bool)].abs().mean().item()
    assert expected > 0
    assert writer.last("relations/drift") == pytest.approx(expected)


def test_relate_is_the_matrix_of_a_step_and_keeps_nothing() -> None:
    learner, reg = parts()
    batch = named(contracts.regression_batch())
    m = reg.relate(learner, batch)
    torch.testing.assert_close(m, reg(learner, batch).relations, rtol=0, atol=1e-12)
    assert not m.requires_grad


def test_the_history_sees_every_step() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=3)
    found = trained(learner, reg, 7)
    expected = torch.stack([out.relations for out, _ in found]).mean(0)
    mean = reg.monitor.history.mean()
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(mean[off], expected.numpy()[off], atol=1e-12)
    assert (reg.monitor.history.seen()[off] == 7).all()
    assert np.isnan(np.diag(mean)).all()


def test_the_history_is_kept_by_families() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=1, families=FAMILIES)
    ((out, _),) = trained(learner, reg, 1)
    m = out.relations
    assert reg.monitor.history.names == ["even", "odd"]
    expected = [[m[0, 2], (m[0, 1] + m[0, 3] + m[2, 1] + m[2, 3]) / 4], [0.0, m[1, 3]]]
    mean = reg.monitor.history.mean()
    assert mean[0, 0] == pytest.approx(float(expected[0][0]))
    assert mean[0, 1] == pytest.approx(float(expected[0][1]))
    assert mean[1, 1] == pytest.approx(float(expected[1][1]))


def test_of_large_batches_only_some_steps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "ROOM", 50)
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=10)
    trained(learner, reg, 8)
    assert sum(len(m) ** 2 for _, m, _ in reg.monitor._kept) <= 50


def test_names_beyond_the_limit_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LIMIT", 2)
    monkeypatch.setattr(monitor, "LIMIT", 2)
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=1)
    with pytest.warns(UserWarning, match="more than 2 tasks have names of their own") as told:
        trained(learner, reg, 2)
    assert len(told) == 1


def test_without_ids_tasks_are_numbered_and_nothing_is_kept() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1, families=FAMILIES)
    reg(learner, contracts.regression_batch())
    assert not reg.monitor.history.names
    assert "truth/purity" not in writer.curves
    assert set(writer.images) == {
        "relations/as_given",
        "relations/clustered",
        "relations/heads",
        "weights/used",
    }


def test_without_a_relation_term_the_own_loss_is_drawn() -> None:
    learner, reg = parts()
    reg.lam = 0.0
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    out = reg(learner, named(contracts.regression_batch()))
    assert writer.curves == {"loss/lambda": [(0, 0.0)], "loss/own": [(0, out.task_loss.item())]}
    assert not writer.images


def test_steps_that_do_not_train_are_not_watched() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    with torch.no_grad():
        reg(learner, contracts.regression_batch())
    assert reg.monitor.step == 0
    assert not writer.curves


def test_validation_with_gradients_is_not_watched() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=1)
    reg.eval()(learner, contracts.regression_batch())
    assert reg.monitor.step == 0


def test_true_similarity_is_compared_with_m() -> None:
    learner, reg = parts()
    place = {"a": 0.0, "b": 1.0, "c": 3.0, "d": 7.0}

    def similarity(ids: list[str]) -> list[list[float]]:
        return [[-abs(place[i] - place[j]) for j in ids] for i in ids]

    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1, similarity=similarity)
    out = reg(learner, named(contracts.regression_batch()))
    from scipy.stats import spearmanr

    off = ~np.eye(4, dtype=bool)
    truth = np.array(similarity(list("abcd")))
    expected = spearmanr(out.relations.numpy()[off], truth[off]).statistic
    assert writer.last("truth/rank_correlation") == pytest.approx(expected)
    reg.monitor = tr.RelationMonitor(writer, similarity=lambda ids: [1.0])
    with pytest.raises(ValueError, match=r"similarity must return \[tasks, tasks\] = \(4, 4\)"):
        reg(learner, named(contracts.regression_batch()))


def test_collected_tasks_are_watched() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    batch = contracts.regression_batch()
    tasks = reg.collect()
    for i, name in enumerate("abcd"):
        support, query = batch.support.real(i), batch.query.real(i)
        adapted = learner.adapt(batch.support[i : i + 1], mse_loss)
        tasks.add(lambda x, f=adapted: f(x[None])[0], support=support, query=query, id=name)
    tasks.penalty().backward()
    assert writer.last("loss/relation") == tasks.term.loss.item()
    assert reg.monitor.history.names == list("abcd")
    assert "loss/own" not in writer.curves  # it is the loop's


def test_a_decorated_function_is_watched_and_tasks_without_names_have_none() -> None:
    _, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    w = torch.ones(contracts.INPUTS, contracts.OUTPUTS, dtype=torch.float64, requires_grad=True)

    @reg.regularize
    def adapt(support):
        (g,) = torch.autograd.grad(mse_loss(support[0] @ w, support[1]), w, create_graph=True)
        return lambda x, fast=w - 0.1 * g: x @ fast

    adapt(contracts.regression_batch())
    assert len(writer.curves["loss/relation"]) == 1
    assert not reg.monitor.history.names
    adapt(named(contracts.regression_batch()))
    assert reg.monitor.history.names == list("abcd")


def test_called_by_hand_after_a_step() -> None:
    learner, reg = parts()
    watch = tr.RelationMonitor(writer := Memory(), every=1)
    batch = named(contracts.regression_batch())
    out = reg(learner, batch)
    watch(out, reg, batch)
    assert writer.last("loss/own") == out.task_loss.item()


def test_a_samplers_summary_is_drawn() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    reg.sampler = tr.AdaptiveTaskSampler(list("abcdef"), batch_size=4)
    reg(learner, named(contracts.regression_batch()))
    summary = reg.sampler.summary()
    numbers = {name for name, value in summary.items() if value.ndim == 0}
    assert numbers
    for name in numbers:
        assert writer.curves[f"sampler/{name}"] == [(0, summary[name].item())]
    assert "sampler/draws" not in writer.curves  # a histogram, which this writer has not


def test_alignment_confidence_is_that_of_the_soft_matching() -> None:
    net = contracts.net()
    learner = contracts.learner("maml", net, "batched")
    encoder = tr.InputEncoder(None, dim=contracts.INPUTS)
    reg = tr.TRLearner(
        encoder, align="sinkhorn", loss_fn=torch.nn.functional.cross_entropy
    ).double()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1)
    batch = contracts.class_batch()
    reg(learner, batch)
    x, y = batch.support.x, batch.support.y
    p = [reference.prototypes(lambda s: s, x[i], y[i], batch.ways) for i in range(4)]
    best = []
    for j in range(4):
        for i in range(4):
            if i != j:
                soft = tr.relations.sinkhorn(
                    torch.stack([torch.stack(list(p[j])), torch.stack(list(p[i]))])
                )
                best += [max(row) for row in soft[0, 1].tolist()]
    assert writer.last("relations/alignment_confidence") == pytest.approx(sum(best) / len(best))
    reg.options = replace(reg.options, align="hungarian")
    reg(learner, batch)
    assert writer.last("relations/alignment_confidence") == 1.0


def test_relations_that_are_no_numbers_are_drawn_grey_and_stop_nothing() -> None:
    _, reg = parts()
    watch = tr.RelationMonitor(writer := Memory(), every=1)
    learner, _ = parts()
    out = reg(learner, named(contracts.regression_batch()))
    broken = tr.Output(**{**vars(out), "relations": out.relations * math.nan})
    watch(broken, reg, named(contracts.regression_batch()))
    assert math.isnan(writer.last("relations/mean"))
    assert len(writer.images["relations/clustered"]) == 1


def test_a_run_that_diverged_is_watched_to_its_end(tmp_path: pathlib.Path) -> None:
    """TensorBoard's own writer refuses histograms of nothing."""
    learner, reg = parts()
    reg(learner, named(contracts.regression_batch()))  # finds its widths
    for p in [*learner.parameters(), *reg.parameters()]:
        p.data.fill_(math.nan)
    with SummaryWriter(str(tmp_path)) as writer:
        reg.monitor = tr.RelationMonitor(writer, every=1)
        for _ in range(2):
            reg(learner, named(contracts.regression_batch()))


def test_a_copied_regularizer_is_not_watched(tmp_path: pathlib.Path) -> None:
    _, reg = parts()
    with SummaryWriter(str(tmp_path)) as writer:
        reg.monitor = tr.RelationMonitor(writer)
        assert copy.deepcopy(reg).monitor is None
    assert reg.monitor is not None
    assert "monitor" not in "".join(reg.state_dict())


@pytest.mark.full
def test_attaching_it_traces_no_new_graph() -> None:
    learner, reg = parts("traced")
    reg(learner, named(contracts.regression_batch()))
    reg.monitor = tr.RelationMonitor(Memory(), every=1)
    reg(
        learner, named(contracts.regression_batch())
    )  # a new graph would warn, which is an error here


def test_it_goes_on_from_its_state() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=2)
    trained(learner, reg, 3)
    state = reg.monitor.state_dict()
    other = tr.RelationMonitor(writer := Memory(), every=2)
    other.load_state_dict(state)
    assert other.step == 3
    reg.monitor = other
    trained(learner, reg, 2)
    assert [step for step, _ in writer.curves["loss/own"]] == [4]
    assert (other.history.seen()[0, 1] >= 4).all()


@pytest.mark.unchecked
def test_wrong_use_is_told() -> None:
    with pytest.raises(TypeError, match="writer must have add_scalar and add_image, got str"):
        tr.RelationMonitor("runs/mine")
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        tr.RelationMonitor(Memory(), every=0)
    with pytest.raises(
        ValueError, match="share must be a finite number of at least 0 and of at most 1, got 2"
    ):
        tr.RelationMonitor(Memory(), share=2)


# ---- the files ------------------------------------------------------------------------------------


def read(folder: pathlib.Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})


@pytest.mark.full
def test_event_files_have_it_all(tmp_path: pathlib.Path) -> None:
    learner, reg = parts()
    with SummaryWriter(str(tmp_path)) as writer:
        reg.monitor = tr.RelationMonitor(
            writer, every=2, names=lambda id: f"task {id}", families=FAMILIES, share=1
        )
        found = trained(learner, reg, 5)
        reg.monitor.hparams({"lam": 0.3, "top_k": None, "seed": 1}, {"best validation": 0.5})
    events = read(tmp_path).Reload()
    tags = events.Tags()
    own = events.Scalars("trlearner.loss/own")
    assert [e.step for e in own] == [0, 2, 4]
    for event, step in zip(own, (0, 2, 4), strict=True):
        assert event.value == pytest.approx(found[step][0].task_loss.item(), rel=1e-6)
    assert events.Scalars("best validation")[0].step == 5
    for tag in ("relations/as_given", "relations/clustered", "relations/heads", "weights/used"):
        first = events.Images(f"trlearner.{tag}")[0]
        picture = Image.open(io.BytesIO(first.encoded_image_string))
        assert first.step == 0
        assert picture.size == (first.width, first.height)
    expected = heatmap(
        found[0][0].relations.numpy(), [f"task {i}" for i in "abcd"], "relations M, step 0"
    )
    given = events.Images("trlearner.relations/as_given")[0].encoded_image_string
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(given))), expected)
    assert {"trlearner.relations/all", "trlearner.weights/all"} <= set(tags["distributions"])
    text = events.Tensors("trlearner.configuration/text_summary")[0].tensor_proto
    table = tensor_util.make_ndarray(text)[0].decode()
    assert "| encoder | LabelledEncoder |" in table and "| learner | MAML |" in table
    assert "custom_scalars__config__" in tags["tensors"]
    hparams = events.summary_metadata["_hparams_/session_start_info"]
    assert b"top_k" in hparams.plugin_data.content and b"seed" in hparams.plugin_data.content
    assert len(list(tmp_path.glob("events*"))) == 1  # one run, no other beside it
    points = tmp_path / "00000" / "tasks"
    rows = (points / "metadata.tsv").read_text().splitlines()
    assert rows == ["name\tfamily", *(f"task {i}\t{FAMILIES[i]}" for i in "abcd")]
    vectors = np.loadtxt(points / "tensors.tsv")
    np.testing.assert_allclose(vectors, found[0][0].embeddings.numpy(), rtol=1e-5)


def test_every_curve_of_the_page_exists() -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(writer := Memory(), every=1, families=FAMILIES, share=1)
    trained(learner, reg, 1)
    trained(learner, reg, 1)
    import re

    curves = [f"trlearner.{name}" for name in writer.curves]
    for charts in monitor.scalars.layout().values():
        for _, (pattern,) in charts.values():
            assert any(re.match(pattern, curve) for curve in curves), pattern


@pytest.mark.full
def test_512_tasks(tmp_path: pathlib.Path) -> None:
    learner = contracts.learner("maml", contracts.net(), "batched", steps=1)
    _, reg = parts(top_k=2)
    batch = contracts.regression_batch(tasks=512)
    batch = tr.TaskBatch(batch.support, batch.query, ids=[f"task {i}" for i in range(512)])
    with SummaryWriter(str(tmp_path)) as writer:
        reg.monitor = tr.RelationMonitor(writer, every=1, share=1)
        reg(learner, batch)
    (file,) = tmp_path.glob("events*")
    assert file.stat().st_size < 2_000_000
    events = read(tmp_path).Reload()
    assert events.Images("trlearner.relations/clustered")[0].height < 500


def test_each_logged_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, reg = parts()
    reg.monitor = tr.RelationMonitor(Memory(), every=1, families=FAMILIES, share=1)
    batch = named(contracts.regression_batch())
    out = reg(learner, batch)
    waits: list[str] = []

    def counted(name: str) -> None:
        original = getattr(torch.Tensor, name)

        def spy(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            waits.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spy)

    for name in ("item", "tolist", "cpu", "__float__", "__bool__", "__int__", "nonzero"):
        counted(name)
    reg.monitor(out, reg, batch)
    assert waits == ["cpu"]


def test_off_it_costs_nothing_and_between_points_next_to_nothing() -> None:
    learner, reg = parts()
    batch = named(contracts.regression_batch())
    out = reg(learner, batch)
    watch = tr.RelationMonitor(Memory(), every=10**9)
    watch.step = 1
    seconds = []
    for _ in range(1000):
        started = time.process_time()
        watch(out, reg, batch)
        watch._kept.clear()
        seconds.append(time.process_time() - started)
    assert np.median(seconds) < 2e-4  # with the shape checks of the tests, on a busy machine, too


@pytest.mark.slow
def test_100_000_logged_steps_do_not_slow_down(tmp_path: pathlib.Path) -> None:
    learner, reg = parts()
    batch = named(contracts.regression_batch())
    out = reg(learner, batch)
    with SummaryWriter(str(tmp_path)) as writer:
        watch = tr.RelationMonitor(writer, every=1, families=FAMILIES)
        seconds = []
        for _ in range(10):
            started = time.process_time()
            for _ in range(10_000):
                watch(out, reg, batch)
            seconds.append(time.process_time() - started)
    assert np.median(seconds[5:]) < 1.3 * np.median(seconds[:5])
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 300_000_000


@pytest.mark.full
def test_a_probe_traces_no_graph(capfd: pytest.CaptureFixture[str]) -> None:
    from trlearner.engines import compiled

    learner, reg = parts("traced")
    reg.monitor = tr.RelationMonitor(Memory(), every=1, share=1)
    trained(learner, reg, 3)
    assert sum(len(graphs) for graphs in compiled._graphs[learner].values()) == 1
