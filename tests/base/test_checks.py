"""What arguments must be, and how that is said."""

import math

import pytest
import torch
from torch import nn

from trlearner.base import checks


def test_what_is_right_passes():
    checks.check_whole("n", 1)
    checks.check_whole("n", None, optional=True)
    checks.check_whole("n", -3, least=None)
    checks.check_number("a", 0.5, above=0, most=1)
    checks.check_flag("f", True)
    checks.check_choice("c", "a", ("a", "b"))
    checks.check_function("g", abs, "(x) -> y")
    checks.check_instance("m", nn.Linear(1, 1), nn.Module, "Build one.")
    checks.check_generator(None)
    checks.check_tensor("x", torch.zeros(2, 3), "tasks, dim")
    checks.check_tensor("x", torch.zeros(2, 3, 4), "tasks, ...")


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda: checks.check_whole("n", True), r"n must be a whole number of at least 1, got True"),
        (lambda: checks.check_whole("n", 0, optional=True), r"at least 1, or None, got 0"),
        (lambda: checks.check_whole("n", 1.0, least=None), r"n must be a whole number, got 1.0"),
        (lambda: checks.check_number("a", math.nan), r"a must be a finite number, got nan"),
        (lambda: checks.check_number("a", 2, least=0, most=1), r"of at least 0 and of at most 1, got 2"),
        (lambda: checks.check_number("a", 0, above=0), r"a must be a finite number above 0, got 0"),
        (lambda: checks.check_flag("f", 1), r"f must be True or False, got 1"),
        (lambda: checks.check_choice("c", [], ("a",)), r"c must be one of \('a',\), got \[\]"),
        (lambda: checks.check_loss_fn(3), r"loss_fn must be a function \(predictions, targets\) -> scalar"),
        (lambda: checks.check_generator(3), r"generator must be a Generator, got 3. Pass torch.Gen"),
        (lambda: checks.check_instance("m", 3, nn.Module, "Build it."), r"m must be a Module.*Build it"),
        (lambda: checks.check_tensor("x", [1], "tasks, dim"), r"x must be a tensor \[tasks, dim\], got"),
        (lambda: checks.check_tensor("x", torch.zeros(2), "tasks, dim"), r"got a tensor \[2\] of torch"),
        (lambda: checks.check_tensor("x", torch.zeros(2), "tasks, samples, ..."), r"x must be \[tasks"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(check, text: str):
    with pytest.raises((ValueError, TypeError), match=text):
        check()


def test_long_values_are_shortened():
    assert checks.shown("x" * 100) == "str '" + "x" * 36 + "..."
