import pytest
from hypothesis import given
from hypothesis import strategies as st
from trlearner.experiments.data.division import split_column, split_groups
from trlearner.experiments.data.measurements import Measurement


@given(groups=st.integers(3, 60), sizes=st.randoms(use_true_random=False), seed=st.integers(0, 9))
def test_every_group_is_in_one_split(groups, sizes, seed):
    group = {f"T{g}-{i}": f"T{g}" for g in range(groups) for i in range(sizes.randint(1, 3))}
    splits = split_groups(group, seed)
    assert sorted(n for names in splits.values() for n in names) == sorted(group)
    assert all(splits.values())
    of = [{group[name] for name in names} for names in splits.values()]
    assert sum(map(len, of)) == groups  # disjoint
    backwards = split_groups(dict(reversed(group.items())), seed)
    assert {s: set(names) for s, names in splits.items()} == {
        s: set(names) for s, names in backwards.items()
    }


def test_shares_and_seeds():
    group = {f"A{i}": f"A{i}" for i in range(100)}
    splits = split_groups(group)
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [65, 15, 20]
    assert splits == split_groups(group)
    assert splits["test"] != split_groups(group, seed=1)["test"]


def test_three_groups_are_the_least():
    with pytest.raises(ValueError, match=r"at least 3 groups.*got \['x', 'y'\]"):
        split_groups({"a": "x", "b": "y"})


def rows(*pairs):
    return [Measurement(task, "C", 1.0, split) for task, split in pairs]


def test_a_column_decides():
    found = rows(("A", "train"), ("B", "test"), ("A", "train"), ("C", "validation"), ("D", "test"))
    assert split_column(found) == {"train": ("A",), "test": ("B", "D"), "validation": ("C",)}
    assert split_column(rows(("A", None), ("B", None))) is None


def test_a_column_must_agree_with_itself():
    with pytest.raises(ValueError, match="task A has both 'train' and 'test'"):
        split_column(rows(("A", "train"), ("A", "test")))


@pytest.mark.parametrize("strange", ["valid", None])
def test_a_column_must_name_known_splits(strange):
    with pytest.raises(ValueError, match=f"split must be train.*got .'{strange}'"):
        split_column(rows(("A", "train"), ("B", strange)))
