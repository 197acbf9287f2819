"""Samples and TaskBatch: what they hold, how they are sliced and moved, and what they refuse."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import trlearner as tr

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 0.0, "atol": 1e-9}


def tensors(tasks: int = 4, samples: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, samples, 2, generator=g), torch.randn(tasks, samples, 1, generator=g)


def labels(tasks: int = 4, samples: int = 5, ways: int = 3) -> Tensor:
    return torch.arange(tasks * samples).reshape(tasks, samples) % ways


def masked() -> tuple[Tensor, Tensor, Tensor]:
    x, y = tensors()
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, 3:] = mask[2, 0] = False
    return x, y, mask


# ---- construction -------------------------------------------------------------------------------


@pytest.mark.unchecked
def test_a_batch_holds_what_it_was_given():
    (xs, ys), (xq, yq) = tensors(), tensors(samples=7, seed=1)
    batch = tr.TaskBatch(support=(xs, ys), query=[xq, yq], ids=["a", "b", "c", "d"])
    assert batch.support.x is xs and batch.support.y is ys
    assert batch.query.x is xq and batch.query.y is yq
    assert batch.support.mask is None and batch.ways is None
    assert batch.ids == ("a", "b", "c", "d")
    assert len(batch) == len(batch.support) == len(batch.query) == 4


def test_samples_unpack_as_x_y_and_the_rest():
    x, y, mask = masked()
    first, second, *rest = tr.Samples(x, y, mask)
    assert first.shape == x.shape and second.shape == y.shape
    assert len(rest) == 1 and rest[0] is mask
    batch = tr.TaskBatch((x, y), (x, y))
    xs, ys, *_ = batch.support
    assert xs is x and ys is y


def test_ready_made_samples_are_taken_as_they_are():
    samples = tr.Samples(*masked())
    batch = tr.TaskBatch(samples, samples)
    assert batch.support is samples and batch.query is samples


def test_ways_reach_both_sets():
    x, y = tensors()[0], labels()
    batch = tr.TaskBatch((x, y), tr.Samples(x, y), ways=3)
    assert (batch.ways, batch.support.ways, batch.query.ways) == (3, 3, 3)


def test_ways_may_come_from_both_samples():
    samples = tr.Samples(tensors()[0], labels(), ways=3)
    assert tr.TaskBatch(samples, samples).ways == 3


def test_ways_of_the_batch_replace_those_of_samples_and_are_checked_again():
    samples = tr.Samples(tensors()[0], labels(), ways=5)
    assert tr.TaskBatch(samples, samples, ways=3).support.ways == 3
    with pytest.raises(ValueError, match=r"support: labels must lie in 0\.\.1 for ways=2, got 0"):
        tr.TaskBatch(samples, samples, ways=2)


def test_support_and_query_must_have_the_same_ways():
    x, y = tensors()[0], labels()
    with pytest.raises(ValueError, match="same number of classes, got ways=3 and ways=5"):
        tr.TaskBatch(tr.Samples(x, y, ways=3), tr.Samples(x, y, ways=5))
    with pytest.raises(ValueError, match=r"ways=None and ways=5\. Pass ways to TaskBatch"):
        tr.TaskBatch((x, y), tr.Samples(x, y, ways=5))


def test_batches_are_frozen():
    batch = tr.TaskBatch(tensors(), tensors())
    with pytest.raises(dataclasses.FrozenInstanceError, match="support"):
        batch.support = batch.query
    with pytest.raises(dataclasses.FrozenInstanceError, match="x"):
        batch.support.x = torch.zeros(1)


def test_repr():
    x, y, mask = masked()
    assert repr(tr.Samples(x, y)) == "Samples(x=[4, 5, 2], y=[4, 5, 1])"
    assert repr(tr.Samples(x, y, mask)) == "Samples(x=[4, 5, 2], y=[4, 5, 1], real=17/20)"
    batch = tr.TaskBatch((x, labels()), (x, labels()), ids=range(4), ways=3)
    samples = "Samples(x=[4, 5, 2], y=[4, 5])"
    assert repr(batch) == (
        f"TaskBatch(tasks=4, support={samples}, query={samples}, ways=3, ids=[0, 1, 2, 3])"
    )


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.unchecked
def test_x_and_y_must_be_tensors():
    x, y = tensors()
    with pytest.raises(
        TypeError, match=r"^x\[0\]\[0\]\[0\] must be a tensor, got float\. Convert it first"
    ):
        tr.Samples(x.tolist(), y)
    with pytest.raises(TypeError, match="^query: y must be a tensor, got ndarray"):
        tr.TaskBatch((x, y), (x, y.numpy()))


@pytest.mark.unchecked
def test_mask_must_be_a_bool_tensor_of_the_right_shape():
    x, y, mask = masked()
    with pytest.raises(TypeError, match="mask must be a tensor, got list"):
        tr.Samples(x, y, mask.tolist())
    with pytest.raises(
        ValueError, match=r"\[tasks, samples\] = \[4, 5\], got torch.float32 \[4, 5"
    ):
        tr.Samples(x, y, mask.float())
    with pytest.raises(ValueError, match=r"= \[4, 5\], got torch.bool \[5, 4\]"):
        tr.Samples(x, y, mask.T)


def test_axes_are_needed():
    with pytest.raises(
        ValueError, match=r"x must be \[tasks, samples, \.\.\.\], got \[5\].*x\[None"
    ):
        tr.Samples(torch.zeros(5), torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"y must be \[tasks, samples, \.\.\.\], got \[5\]"):
        tr.Samples(torch.zeros(5, 1), torch.zeros(5))


def test_x_and_y_must_agree():
    x, y = tensors()
    with pytest.raises(ValueError, match=r"got \[4, 5, 2\] and \[4, 4, 1\].*from_tasks"):
        tr.Samples(x, y[:, :4])
    with pytest.raises(ValueError, match=r"got \[4, 5, 2\] and \[3, 5, 1\]"):
        tr.Samples(x, y[:3])


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_empty_sets_are_refused(shape: tuple[int, int]):
    with pytest.raises(ValueError, match=r"at least one sample, got x of shape \[\d, \d, 2\]"):
        tr.Samples(torch.zeros(*shape, 2), torch.zeros(*shape, 1))


def test_a_mask_that_leaves_nothing_is_refused():
    x, y, mask = masked()
    mask[1] = mask[3] = False
    with pytest.raises(ValueError, match=r"mask is all false for tasks \[1, 3\]"):
        tr.Samples(x, y, mask)


def test_labels_must_lie_in_ways():
    x, y = tensors()[0], labels()
    with pytest.raises(
        ValueError, match=r"^support: labels must lie in 0\.\.1 for ways=2, got 0\.\.2"
    ):
        tr.TaskBatch((x, y), (x, y), ways=2)
    with pytest.raises(
        ValueError, match=r"^query: labels must lie in 0\.\.2 for ways=3, got -1\.\.1"
    ):
        tr.TaskBatch((x, y), (x, y - 1), ways=3)


def test_ways_are_for_labels():
    with pytest.raises(
        ValueError, match=r"ways=3 is for class labels, .* torch.float32.*y.long\(\)"
    ):
        tr.TaskBatch(tensors(), tensors(), ways=3)


@pytest.mark.unchecked
@pytest.mark.parametrize("ways", [0, -1, 2.5, "3"])
def test_ways_must_be_a_whole_number(ways: object):
    x, y = tensors()[0], labels()
    with pytest.raises(ValueError, match="ways must be a whole number of at least 1, or None, got"):
        tr.TaskBatch((x, y), (x, y), ways=ways)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_must_be_finite(bad: float):
    x, y = tensors()
    spoiled = x.clone()
    spoiled[1, 2, 0] = spoiled[3, 0, 1] = bad
    with pytest.raises(ValueError, match=r"^query: x must be finite, got NaN .* tasks \[1, 3\]"):
        tr.TaskBatch((x, y), (spoiled, y))
    spoiled = y.clone()
    spoiled[0, 0] = bad
    with pytest.raises(ValueError, match=r"^support: y must be finite, got NaN .* tasks \[0\]"):
        tr.TaskBatch((x, spoiled), (x, y))


def test_opposite_infinities_do_not_hide_each_other():
    x, y = tensors()
    x[0, 0, 0], x[0, 0, 1] = float("inf"), -float("inf")
    with pytest.raises(ValueError, match=r"x must be finite, .* tasks \[0\]"):
        tr.Samples(x, y)


def test_large_values_whose_sum_overflows_are_accepted():
    x, y = tensors()
    big = torch.full_like(x, 3e38)
    assert tr.Samples(big, y).x is big


def test_support_and_query_must_fit():
    x, y = tensors()
    with pytest.raises(ValueError, match="same tasks, got 4 and 3"):
        tr.TaskBatch((x, y), (x[:3], y[:3]))
    with pytest.raises(ValueError, match=r"same shape, got x of \[4, 5, 2\] and \[4, 5, 1\]"):
        tr.TaskBatch((x, y), (x[..., :1], y))
    with pytest.raises(ValueError, match=r"same shape, got y of \[4, 5, 1\] and \[4, 5\]"):
        tr.TaskBatch((x, y), (x, y[..., 0]))


def test_ids_must_name_every_task():
    with pytest.raises(ValueError, match="ids must name every task, got 3 for 4 tasks"):
        tr.TaskBatch(tensors(), tensors(), ids="abc")


@pytest.mark.unchecked
@pytest.mark.parametrize("value", [torch.zeros(2, 4, 5), ("x", "y", "mask"), {"x": 1, "y": 2}, 3])
def test_a_set_must_be_a_pair(value: object):
    with pytest.raises(TypeError, match=r"support must be a pair \(x, y\) of tensors"):
        tr.TaskBatch(value, tensors())


# ---- choosing tasks -----------------------------------------------------------------------------

INDICES = {
    "slice": (slice(1, 3), [1, 2]),
    "backwards": (slice(-2, None), [2, 3]),
    "list": ([3, 0], [3, 0]),
    "tuple": ((1,), [1]),
    "negative": ([-1], [3]),
    "range": (range(0, 4, 2), [0, 2]),
    "tensor": (torch.tensor([2, 2, 1]), [2, 2, 1]),
    "mask": (torch.tensor([True, False, False, True]), [0, 3]),
    "bools": ([False, True, False, True], [1, 3]),
}


@pytest.mark.parametrize("name", INDICES)
def test_indexing_takes_tasks_masks_and_ids(name: str):
    index, wanted = INDICES[name]
    x, y, mask = masked()
    samples = tr.Samples(x, y, mask)
    batch = tr.TaskBatch(samples, samples, ids="abcd")
    some = batch[index]
    assert some.ids == tuple("abcd"[i] for i in wanted)
    for part in (some.support, some.query, samples[index]):
        assert torch.equal(part.x, samples.x[wanted])
        assert torch.equal(part.y, samples.y[wanted])
        assert torch.equal(part.mask, mask[wanted])


def test_indexing_keeps_ways_and_absent_ids():
    x, y = tensors()[0], labels()
    some = tr.TaskBatch((x, y), (x, y), ways=3)[:2]
    assert (some.ways, some.support.ways, some.query.ways, some.ids) == (3, 3, 3, None)


@pytest.mark.unchecked
@pytest.mark.parametrize("index", [2, torch.tensor(2)])
def test_one_index_is_refused(index: object):
    batch = tr.TaskBatch(tensors(), tensors())
    with pytest.raises(TypeError, match=r"with a slice or a list, got 2: use \[2:3\]"):
        batch[index]
    with pytest.raises(TypeError, match=r"with a slice or a list, got 2: use \[2:3\]"):
        batch.support[index]


@pytest.mark.parametrize("index", [slice(4, None), [], torch.zeros(4, dtype=torch.bool)])
def test_choosing_no_task_is_refused(index: object):
    with pytest.raises(ValueError, match="selects none of the 4 tasks"):
        tr.TaskBatch(tensors(), tensors(), ids=range(4))[index]


@pytest.mark.unchecked
def test_a_batch_is_no_sequence_of_tasks():
    with pytest.raises(TypeError, match="with a slice or a list, got 0"):
        list(tr.TaskBatch(tensors(), tensors()))


def test_choose_takes_samples_of_each_task():
    x, y, mask = masked()
    choice = torch.tensor([[0, 4], [1, 1], [2, 0], [3, 2]])
    some = tr.Samples(x, y, mask).choose(choice)
    filled = tr.Samples(x, y, mask)
    for task in range(4):
        assert torch.equal(some.x[task], filled.x[task][choice[task]])
        assert torch.equal(some.y[task], filled.y[task][choice[task]])
        assert torch.equal(some.mask[task], mask[task][choice[task]])


def test_real_drops_padding():
    x, y, mask = masked()
    samples = tr.Samples(x, y, mask)
    for task in range(4):
        real_x, real_y = samples.real(task)
        assert torch.equal(real_x, x[task][mask[task]])
        assert torch.equal(real_y, y[task][mask[task]])
    assert torch.equal(tr.Samples(x, y).real(1)[0], x[1])


def test_replace_keeps_ids_and_ways():
    x, y = tensors()[0], labels()
    batch = tr.TaskBatch((x, y), (x, y), ids="abcd", ways=3)
    fewer = batch.query.choose(torch.zeros(4, 2, dtype=torch.long))
    other = batch.replace(batch.support, fewer)
    assert other.support is batch.support and other.query is fewer
    assert other.ids == tuple("abcd") and other.ways == 3 and batch.query.x is x


def test_unchecked_samples_are_taken_as_they_are():
    x, y, mask = masked()
    x[0, 4] = float("nan")
    samples = tr.Samples.unchecked(x, y, mask, 3)
    assert samples.x is x and samples.y is y and samples.mask is mask and samples.ways == 3


# ---- moving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.to(torch.float64),
        lambda b: b.to(dtype=torch.float64),
        lambda b: b.to("cpu", torch.float64),
        lambda b: b.to(torch.zeros(1, dtype=torch.float64)),
        lambda b: b.to("cpu", dtype=torch.float64, non_blocking=True),
    ],
)
def test_to_leaves_labels_and_masks_alone(call):
    x, _, mask = masked()
    samples = tr.Samples(x, labels(), mask, ways=3)
    moved = call(tr.TaskBatch(samples, samples, ids="abcd"))
    assert moved.support.x.dtype == moved.query.x.dtype == torch.float64
    assert moved.support.y.dtype == moved.query.y.dtype == torch.int64
    assert moved.support.mask.dtype == torch.bool
    assert moved.ids == tuple("abcd") and moved.ways == moved.support.ways == 3
    assert_close(moved.support.x, samples.x.double(), **EXACT)


def test_to_moves_to_a_device():
    x, y, mask = masked()
    moved = tr.TaskBatch(tr.Samples(x, y, mask), (x, y)).to("meta")
    found = {t.device.type for t in (*moved.support, *moved.query) if t is not None}
    assert found == {"meta"} and moved.support.mask.shape == mask.shape


def test_to_changes_nothing_in_place():
    batch = tr.TaskBatch(tensors(), tensors())
    batch.to(torch.float64)
    assert batch.support.x.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU's driver")
def test_pin_memory():
    x, y, mask = masked()
    pinned = tr.TaskBatch(tr.Samples(x, y, mask), (x, y), ids="abcd").pin_memory()
    found = [t for t in (*pinned.support, *pinned.query) if t is not None]
    assert len(found) == 5 and all(t.is_pinned() for t in found)
    assert pinned.ids == tuple("abcd")


def test_pin_memory_pins_every_tensor(monkeypatch: pytest.MonkeyPatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    x, y, mask = masked()
    samples = tr.Samples(x, y, mask)
    batch = tr.TaskBatch(samples, (x, y), ids="abcd").pin_memory()
    wanted = [samples.x, samples.y, mask, x, y]
    assert len(pinned) == len(wanted)
    assert {id(t) for t in pinned} == {id(t) for t in wanted}
    assert batch.ids == tuple("abcd")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_follow_an_index_on_the_gpu():
    batch = tr.TaskBatch(tensors(), tensors(), ids="abcd").to("cuda")
    some = batch[torch.tensor([2, 0], device="cuda")]
    assert some.ids == ("c", "a") and some.support.x.is_cuda


# ---- what stands under a false mask entry -------------------------------------------------------


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30, 0.0])
def test_padding_is_never_read(junk: float):
    x, y, mask = masked()
    dirty_x, dirty_y = x.clone(), y.clone()
    dirty_x[~mask], dirty_y[~mask] = junk, junk
    clean, dirty = tr.Samples(x, y, mask), tr.Samples(dirty_x, dirty_y, mask)
    assert torch.equal(clean.x, dirty.x) and torch.equal(clean.y, dirty.y)
    # Task 2 lacks its first sample: it is filled with the second, its first real one.
    assert torch.equal(dirty.x[2, 0], x[2, 1]) and torch.equal(dirty.x[0, 3], x[0, 0])
    assert torch.equal(dirty.x[mask], x[mask]) and torch.equal(dirty.y[mask], y[mask])


def test_padding_leaves_the_users_tensors_alone():
    x, y, mask = masked()
    before = x.clone(), y.clone(), mask.clone()
    tr.Samples(x, y, mask)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]) and torch.equal(mask, before[2])


def test_labels_under_padding_may_be_anything():
    x, _, mask = masked()
    y = labels()
    y[~mask] = -100
    samples = tr.Samples(x, y, mask, ways=3)
    assert int(samples.y.min()) == 0


@pytest.mark.parametrize("engine", ["higher", "loop", "batched"])
def test_padding_never_reaches_a_meta_step(engine: str):
    x, y, mask = (t.double() if t.is_floating_point() else t for t in masked())

    def step(junk: float) -> tuple[Tensor, list[Tensor]]:
        dirty_x, dirty_y = x.clone(), y.clone()
        dirty_x[~mask], dirty_y[~mask] = junk, junk
        samples = tr.Samples(dirty_x, dirty_y, mask)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        learner = tr.MAML(model, lr=0.1, steps=2, engine=engine)
        encoder = tr.LabelledEncoder(None, dim=3, features=2, targets=1)
        reg = tr.TRLearner(encoder=encoder, lam=0.5).double()
        loss = reg(learner, tr.TaskBatch(samples, samples)).loss
        parameters = [*learner.parameters(), *reg.parameters()]
        return loss, torch.autograd.grad(loss, parameters)

    (clean, clean_gradients), (dirty, dirty_gradients) = step(0.5), step(float("nan"))
    assert torch.isfinite(clean)
    assert_close(dirty, clean, **EXACT)
    assert_close(dirty_gradients, clean_gradients, **EXACT)
    assert all(g.abs().max() > 0 for g in dirty_gradients)


# ---- from_tasks ---------------------------------------------------------------------------------


def draw_tasks(sizes: list[tuple[int, int]], seed: int = 0):
    g = torch.Generator().manual_seed(seed)

    def pair(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 2, generator=g, dtype=torch.float64)
        return x, torch.randn(n, 1, generator=g, dtype=torch.float64)

    return [(pair(s), pair(q)) for s, q in sizes]


SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_from_tasks_keeps_every_sample(sizes: list[tuple[int, int]]):
    tasks = draw_tasks(sizes)
    batch = tr.TaskBatch.from_tasks(tasks, ids=range(len(tasks)))
    assert len(batch) == len(tasks) and batch.ids == tuple(range(len(tasks)))
    for samples, side in ((batch.support, 0), (batch.query, 1)):
        longest = max(size[side] for size in sizes)
        assert samples.x.shape == (len(tasks), longest, 2)
        assert (samples.mask is None) == (len({size[side] for size in sizes}) == 1)
        for i, task in enumerate(tasks):
            x, y = samples.real(i)
            assert torch.equal(x, task[side][0]) and torch.equal(y, task[side][1])


def meta_step(
    batch: tr.TaskBatch, engine: str, loss_fn=F.mse_loss
) -> tuple[tr.Output, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    learner = tr.MAML(model, lr=0.1, steps=2, engine=engine)
    encoder = tr.InputEncoder(model[:2], dim=4, metadata="all")
    reg = tr.TRLearner(encoder=encoder, lam=0.5, loss_fn=loss_fn).double()
    out = reg(learner, batch)
    return out, list(torch.autograd.grad(out.loss, [*learner.parameters(), *reg.parameters()]))


@pytest.mark.full
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=3, max_size=4), st.data())
@settings(max_examples=10, deadline=None)
def test_masks_equal_dropping(sizes: list[tuple[int, int]], data: st.DataObject):
    """The padded engine and the loop, which drops, agree; and more padding changes nothing."""
    batch = tr.TaskBatch.from_tasks(draw_tasks(sizes))
    loop, loop_gradients = meta_step(batch, "loop")
    wider = data.draw(st.integers(1, 3))

    def pad(s: tr.Samples) -> tr.Samples:
        mask = torch.ones(s.x.shape[:2], dtype=torch.bool) if s.mask is None else s.mask
        grow = (0, 0, 0, wider)
        return tr.Samples(F.pad(s.x, grow), F.pad(s.y, grow), F.pad(mask, (0, wider)))

    padded = tr.TaskBatch(pad(batch.support), pad(batch.query))
    for other, engine in ((batch, "batched"), (padded, "batched"), (padded, "loop")):
        out, gradients = meta_step(other, engine)
        assert_close(out.loss, loop.loss, **TIGHT)
        assert_close(out.relations, loop.relations, **TIGHT)
        assert_close(gradients, loop_gradients, **TIGHT)


@pytest.mark.full
@given(st.permutations(range(4)), st.sampled_from(["loop", "batched"]))
@settings(max_examples=10, deadline=None)
def test_permuting_tasks_permutes_the_result(order: list[int], engine: str):
    batch = tr.TaskBatch.from_tasks(draw_tasks([(2, 3), (4, 1), (1, 2), (3, 3)]), ids="abcd")
    out, gradients = meta_step(batch, engine)
    permuted = batch[order]
    assert permuted.ids == tuple("abcd"[i] for i in order)
    other, other_gradients = meta_step(permuted, engine)
    assert_close(other.loss, out.loss, **TIGHT)
    assert_close(other.relations, out.relations[order][:, order], **TIGHT)
    assert_close(other.weights, out.weights[order][:, order], **TIGHT)
    mask = permuted.query.mask[..., None]
    assert_close(other.predictions * mask, out.predictions[order] * mask, **TIGHT)
    assert_close(other_gradients, gradients, **TIGHT)


def test_from_tasks_of_equal_size_has_no_mask():
    tasks = draw_tasks([(3, 2), (3, 2)])
    batch = tr.TaskBatch.from_tasks(tasks)
    assert batch.support.mask is None and batch.query.mask is None
    assert torch.equal(batch.support.x, torch.stack([t[0][0] for t in tasks]))


def test_from_tasks_takes_labels():
    x = torch.zeros(3, 2)
    y = torch.tensor([0, 1, 1])
    batch = tr.TaskBatch.from_tasks([((x, y), (x, y)), ((x[:1], y[:1]), (x, y))], ways=2)
    assert batch.ways == 2 and batch.support.y.dtype == torch.int64
    assert batch.support.y.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch.query.mask is None


@pytest.mark.unchecked
def test_from_tasks_refuses_what_does_not_fit():
    (good,) = draw_tasks([(3, 2)])
    (x, y), query = good
    with pytest.raises(ValueError, match="at least one task, got none"):
        tr.TaskBatch.from_tasks([])
    with pytest.raises(
        ValueError, match=r"task 1: support x and y must agree.*\[3, 2\] and \[2, 1\]"
    ):
        tr.TaskBatch.from_tasks([good, ((x, y[:2]), query)])
    with pytest.raises(ValueError, match=r"task 0: query x must be \[samples, ...\], got \[\]"):
        tr.TaskBatch.from_tasks([((x, y), (torch.tensor(0.0), torch.tensor(0.0)))])
    with pytest.raises(ValueError, match="task 1 has an empty query set. Leave this task out"):
        tr.TaskBatch.from_tasks([good, ((x, y), (x[:0], y[:0]))])
    with pytest.raises(
        ValueError, match=r"support x must have one shape of a sample in all tasks, got \[2\]"
    ):
        tr.TaskBatch.from_tasks([good, ((x[:, :1], y), query)])
    with pytest.raises(TypeError, match="task 0: support x must be a tensor, got ndarray"):
        tr.TaskBatch.from_tasks([((x.numpy(), y), query)])
    with pytest.raises(ValueError, match="ids must name every task, got 2 for 1 tasks"):
        tr.TaskBatch.from_tasks([good], ids="ab")
    bad = x.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"x must be finite, got NaN or infinity in tasks \[1\]"):
        tr.TaskBatch.from_tasks([good, ((bad, y), query)])


# ---- torchmeta ----------------------------------------------------------------------------------


def test_from_torchmeta():
    (xs, ys), (xq, yq) = (tensors()[0], labels()), (tensors(seed=1)[0], labels())
    batch = tr.TaskBatch.from_torchmeta(
        {"train": [xs, ys], "test": [xq, yq], "extra": None}, ids="abcd", ways=3
    )
    assert batch.support.x is xs and batch.support.y is ys
    assert batch.query.x is xq and batch.query.y is yq
    assert batch.ways == 3 and batch.ids == tuple("abcd")


@pytest.mark.parametrize("missing", ["train", "test"])
def test_from_torchmeta_needs_both_keys(missing: str):
    batch = {"train": tensors(), "test": tensors()}
    del batch[missing]
    with pytest.raises(ValueError, match=r"the keys 'train' and 'test', got \['t.*ClassSplitter"):
        tr.TaskBatch.from_torchmeta(batch)


def test_tasks_of_several_dtypes_are_refused():
    x, y = torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)
    good, other = ((x, y), (x, y)), ((x, y), (x, y.float()))
    # Together they would become numbers, labels and all.
    match = r"query y must have one dtype, .* got torch.float32 on cpu and torch.int64 on cpu\."
    with pytest.raises(ValueError, match=match):
        tr.TaskBatch.from_tasks([good, other])
    with pytest.raises(ValueError, match="support x must have one dtype, .* torch.float64 on cpu"):
        tr.TaskBatch.from_tasks([good, ((x.double(), y), (x, y))])


def test_support_and_query_have_one_kind_of_targets():
    x, y = torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"both have labels or both numbers .* y\.long\(\)"):
        tr.TaskBatch((x, y), (x, y.float()))
