"""Work keeps to its share of the time."""

import pytest

from trlearner.diagnostics.monitor.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.full
@pytest.mark.parametrize("growth", [1.0, 1.02])
def test_all_work_together_keeps_to_the_share(growth: float) -> None:
    clock = Clock()
    throttle = Throttle(0.02, {"dear": 1.1, "cheap": growth}, clock)
    assert throttle.allowed() == {"dear", "cheap"}
    spent, done = 0.0, {"dear": 0, "cheap": 0}
    for _ in range(20_000):
        allowed = throttle.allowed()
        before = clock.now
        with throttle.spending(allowed):
            clock.now += 0.0001 + 0.1 * ("dear" in allowed) + 0.01 * ("cheap" in allowed)
        spent += clock.now - before
        for name in allowed:
            done[name] += 1
        clock.now += 0.05
    assert spent <= 0.02 * (clock.now - 100.0)
    assert done["cheap"] > 2 * done["dear"] > 40


@pytest.mark.full
def test_how_often_grows_with_the_logarithm_of_time() -> None:
    clock = Clock()
    throttle = Throttle(1.0, {"dear": 1.1}, clock)
    steps = []
    for step in range(1, 200_001):
        if allowed := throttle.allowed():
            steps.append(step)
            with throttle.spending(allowed):
                pass
        clock.now += 0.01
    assert sum(step > 20_000 for step in steps) <= 26  # log(10) / log(1.1) = 24.2
    assert len(steps) < 120


def test_other_work_counts_as_well() -> None:
    clock = Clock()
    throttle = Throttle(0.5, {"dear": 1.1}, clock)
    clock.now += 10
    with throttle.spending({"dear"}):
        clock.now += 2
    clock.now += 8
    assert throttle.allowed() == {"dear"}  # 2 of 20 seconds are spent
    with throttle.spending(set()):
        clock.now += 14
    assert not throttle.allowed()  # 16 of 34 are, and 2 more would be more than a half
