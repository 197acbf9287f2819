import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trlearner.experiments.data.assays import Assays, Table
from trlearner.experiments.data.problem import Request, Source

BITS = 64


def table(sizes, supports=None, seed=0):
    """Every compound's bits and value are its own, so that samples tell where they are from."""
    rows = sum(sizes)
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(rows)
    bits = torch.stack([number >> (8 * i) & 255 for i in range(BITS // 8)], 1).to(torch.uint8)
    shuffled = torch.randperm(rows, generator=generator)
    return Table(
        bits=bits,
        compound=shuffled,
        value=shuffled.float(),
        size=torch.tensor(sizes),
        names=tuple(f"assay{i}" for i in range(len(sizes))),
        supports=None if supports is None else torch.tensor(supports),
    )


def source(sizes, supports=None, shots=3, queries=4, test_queries=None, **more):
    """The first half of the assays is for training, the rest for test."""
    made = table(sizes, supports)
    half = (len(sizes) + 1) // 2
    splits = {"train": made.names[:half], "test": made.names[half:]}
    request = Request(shots=shots, queries=queries, **more)
    return made, Assays(made, splits, request, test_queries)


def drawn(assays, samples, task):
    """The real compounds of a task, by their values; bits must say the same."""
    x, y = samples.real(task)
    values = (y[:, 0] * assays.std + assays.mean).round().long()
    shifts = torch.tensor([8 * (i // 8) + 7 - i % 8 for i in range(BITS)])
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close((x.long() << shifts).sum(1), values, rtol=0, atol=0)
    return values.tolist()


def of_assay(made, name):
    i = made.names.index(name)
    start = int(made.size[:i].sum())
    return made.value[start : start + int(made.size[i])].long().tolist()


sizes = st.lists(st.integers(4, 30), min_size=2, max_size=9)


@pytest.mark.full
@given(sizes=sizes, queries=st.integers(1, 40), split=st.sampled_from(["train", "test"]))
def test_support_and_query_are_different_compounds_of_one_assay(sizes, queries, split):
    made, assays = source(sizes, queries=queries, test_queries=queries)
    count = len(made.names) // 2
    batch = assays.sample(split, count, torch.Generator().manual_seed(0))
    for task, name in enumerate(batch.ids):
        support, query = (drawn(assays, s, task) for s in (batch.support, batch.query))
        everything = of_assay(made, name)
        assert len(support) == 3
        assert len(query) == min(queries, len(everything) - 3)
        assert len({*support, *query}) == len(support) + len(query)
        assert {*support, *query} <= set(everything)


@pytest.mark.full
@given(sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=9))
def test_a_division_of_the_data_is_kept(sizes):
    totals = [a + b for a, b in sizes]
    made, assays = source(totals, [a for a, _ in sizes], shots=5, queries=100)
    batch = assays.sample("train", (len(sizes) + 1) // 2, torch.Generator().manual_seed(0))
    for task, name in enumerate(batch.ids):
        early, _ = sizes[made.names.index(name)]
        everything = of_assay(made, name)
        support, query = (drawn(assays, s, task) for s in (batch.support, batch.query))
        assert len(support) == len(set(support)) == min(5, early)
        assert set(support) <= set(everything[:early])
        assert sorted(query) == sorted(everything[early:])


def test_all_others_are_queries_where_no_number_is_given():
    _, assays = source([9, 9, 5, 20])
    batch = assays.sample("test", 2, torch.Generator().manual_seed(0))
    assert batch.support.mask is None
    assert batch.query.x.shape == (2, 17, BITS)
    assert sorted(batch.query.mask.sum(1).tolist()) == [2, 17]


def test_all_batches_of_a_split_have_one_shape():
    _, assays = source([5, 30, 9, 12, 8, 8], queries=6)
    shapes = set()
    for seed in range(20):
        batch = assays.sample("train", 1, torch.Generator().manual_seed(seed))
        shapes.add((batch.query.x.shape, batch.query.mask is None))
    assert shapes == {((1, 6, BITS), False)}


def test_no_mask_where_all_assays_are_large():
    _, assays = source([7, 8, 9, 10])
    batch = assays.sample("train", 2, torch.Generator().manual_seed(0))
    assert batch.support.mask is None and batch.query.mask is None


def test_the_generator_decides():
    _, assays = source([20] * 8)
    one, two = (assays.sample("train", 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.ids == two.ids
    assert torch.equal(one.support.x, two.support.x) and torch.equal(one.query.y, two.query.y)
    generator = torch.Generator().manual_seed(5)
    assays.sample("train", 3, generator)
    assert not torch.equal(assays.sample("train", 3, generator).query.y, one.query.y)


@pytest.mark.full
def test_any_compound_may_be_support_or_query():
    _, assays = source([6, 6], queries=2)
    generator = torch.Generator().manual_seed(0)
    batches = [assays.sample("train", 1, generator) for _ in range(400)]
    for samples in ("support", "query"):
        found = [v for b in batches for v in drawn(assays, getattr(b, samples), 0)]
        counts = torch.tensor([found.count(v) for v in sorted(set(found))]) / len(found)
        assert len(counts) == 6
        torch.testing.assert_close(counts, torch.full((6,), 1 / 6), rtol=0, atol=0.04)


def test_training_batches_have_no_assay_twice():
    _, assays = source([9] * 10)
    batch = assays.sample("train", 5, torch.Generator().manual_seed(0))
    assert len(set(batch.ids)) == 5
    with pytest.raises(ValueError, match="at most the 5 training assays, got 6"):
        assays.sample("train", 6, torch.Generator().manual_seed(0))


def test_test_assays_come_again_when_all_have_come():
    _, assays = source([9] * 6)
    batch = assays.sample("test", 7, torch.Generator().manual_seed(0))
    assert sorted(batch.ids[:3]) == sorted(batch.ids[3:6]) == ["assay3", "assay4", "assay5"]
    again = [i for i in range(7) if batch.ids[i] == batch.ids[0]]
    supports = {tuple(sorted(drawn(assays, batch.support, i))) for i in again}
    assert len(supports) == len(again)


def test_targets_are_standardized_by_the_training_assays():
    made, assays = source([50, 50, 50, 50])
    values = made.value[:100]
    assert assays.mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert assays.std == pytest.approx(float(values.std()), rel=1e-6)


def test_fewer_training_assays_are_always_the_same_ones():
    _, assays = source([20] * 20, train_tasks=3)
    _, again = source([20] * 20, train_tasks=3)
    names = [a.sample("train", 3, torch.Generator().manual_seed(i)).ids for i, a in
             enumerate((assays, assays, again))]  # fmt: skip
    assert len({tuple(sorted(ids)) for ids in names}) == 1
    with pytest.raises(ValueError, match=r"train_tasks must lie in 1..10 \(all of them\), got 11"):
        source([20] * 20, train_tasks=11)


@pytest.mark.parametrize("supports", [None, [10] * 4])
def test_a_pool_holds_some_compounds_of_each_training_assay(supports):
    made, assays = source([20] * 4, supports, shots=2, pool=9)
    generator = torch.Generator().manual_seed(0)
    seen = {}
    for _ in range(60):
        batch = assays.sample("train", 2, generator)
        for task, name in enumerate(batch.ids):
            for samples in (batch.support, batch.query):
                seen.setdefault(name, set()).update(drawn(assays, samples, task))
    assert [len(values) for values in seen.values()] == [9, 9]
    assert all(values <= set(of_assay(made, name)) for name, values in seen.items())
    assert assays.sample("test", 2, generator).query.x.shape[1] == (18 if supports is None else 10)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([3, 9],), r"3 support compounds .* 1 have not, the first \['assay0'\]"),
        (([9, 9], [0, 4]), r"some support compounds .* the first \['assay0'\]"),
        (([9, 9], [9, 4]), r"at least one query compound, but 1 have not"),
    ],
)
def test_assays_that_are_too_small_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        source(*arguments)


def test_a_pool_may_be_too_small():
    with pytest.raises(ValueError, match="Ask for fewer shots .or a larger pool"):
        source([9, 9], pool=3)


def test_values_that_are_all_the_same_are_refused():
    flat = dataclasses.replace(table([9, 9]), value=torch.ones(18))
    with pytest.raises(
        ValueError, match="all training values are 1.0; there is nothing to predict"
    ):
        Assays(flat, {"train": ["assay0"], "test": ["assay1"]}, Request(shots=2, queries=2))


def test_an_unknown_split_is_refused():
    _, assays = source([9, 9])
    with pytest.raises(ValueError, match=r"split must be one of \['test', 'train'\].*'shifted'"):
        assays.sample("shifted", 1, torch.Generator())


def test_it_is_a_source():
    assert isinstance(source([9, 9])[1], Source)
