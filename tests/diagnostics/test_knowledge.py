"""What is known of tasks, and what is not."""

import pytest

from trlearner.diagnostics.monitor.knowledge import Knowledge


def test_functions_and_mappings_are_asked() -> None:
    know = Knowledge({1: "one"}, lambda id: id % 2, None)
    assert know.name(1) == "one"
    assert know.group(3) == 1
    assert know.group_name(1) == "1"
    assert know.families_of([2, 3]) == [0, 1]
    assert know.truth([1, 2]) is None


def test_without_families_a_task_is_its_own_group() -> None:
    know = Knowledge({1: "one"}, None, None)
    assert know.group(1) == 1
    assert know.group_name(1) == "one"
    assert know.families_of([1]) is None


@pytest.mark.unchecked
def test_what_is_not_known_is_told() -> None:
    with pytest.raises(ValueError, match="names must know every task's id, but has no 2"):
        Knowledge({1: "one"}, None, None).name(2)
    with pytest.raises(ValueError, match="families must know every task's id, but has no 'b'"):
        Knowledge(str, {"a": 0}, None).group("b")
    with pytest.raises(ValueError, match=r"similarity must return \[tasks, tasks\] = \(2, 2\)"):
        Knowledge(str, None, lambda ids: [1.0]).truth([1, 2])
