"""Looks keep to their share of the time."""

from trlearner.monitor.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_look_is_free_and_the_next_ones_keep_to_the_share() -> None:
    clock = Clock()
    throttle = Throttle(0.02, clock=clock)
    looks = 0
    for _ in range(20_000):
        look = throttle.allows()
        looks += look
        with throttle.spending(look):
            clock.now += 0.1 if look else 0.0001
        clock.now += 0.05
    passed = clock.now - 100.0
    assert looks * 0.1 <= 0.02 * passed + 0.1
    assert looks > 20


def test_their_number_grows_with_the_logarithm_of_time() -> None:
    clock = Clock()
    throttle = Throttle(1.0, 1.1, clock)
    counts = []
    for step in range(1, 200_001):
        if throttle.allows():
            counts.append(step)
            with throttle.spending(True):
                pass
        clock.now += 0.01
    later = sum(step > 20_000 for step in counts)
    assert later <= 26  # log(10) / log(1.1) = 24.2
    assert len(counts) < 120


def test_time_of_curves_counts_as_well() -> None:
    clock = Clock()
    throttle = Throttle(0.5, clock=clock)
    clock.now += 10
    with throttle.spending(False):
        clock.now += 10
    assert throttle.allows()
    with throttle.spending(False):
        clock.now += 1
    assert not throttle.allows()
