"""Interruptions wait for the end of a step, once."""

import os
import signal
import threading

import pytest
from trlearner.experiments.runs import interrupt


def strike(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def struck(reached: list[str], *numbers: int) -> None:
    with interrupt.held_back():
        for number in numbers:
            strike(number)
        reached.append("the end")


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_the_first_one_waits(number: int) -> None:
    before, reached = signal.getsignal(number), list[str]()
    with pytest.raises(KeyboardInterrupt):
        struck(reached, number)
    assert reached == ["the end"] and signal.getsignal(number) is before


def test_a_second_one_does_not() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        struck(reached, signal.SIGINT, signal.SIGINT)
    assert reached == []


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.held_back():
            strike()
    finally:
        signal.signal(signal.SIGINT, before)


def test_errors_and_other_threads_pass_through() -> None:
    with pytest.raises(ValueError, match="mine"), interrupt.held_back():
        raise ValueError("mine")
    done: list[bool] = []

    def work() -> None:
        with interrupt.held_back():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
