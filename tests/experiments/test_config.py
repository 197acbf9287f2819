"""A config is what a run can mean; whatever else a command line or a file says is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from trlearner.experiments.presets.config import LIMITS, Config

pytestmark = pytest.mark.unchecked

KIND = dict.fromkeys(LIMITS, "a whole number")
KIND |= dict.fromkeys(("lam", "inner_lr", "outer_lr", "clip", "temperature"), "a number")
KIND |= {"average": "a number", "relation_queries": "a number", "test_steps": "a list"}


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_outside_of_their_limits_are_refused_by_name(name: str) -> None:
    low, high, without = LIMITS[name]
    below = low - 1 if "whole" in KIND[name] or name == "test_steps" else math.nextafter(low, -1)
    wrong: list[Any] = [below, high * 2 + 1, math.nan, math.inf, -math.inf, "1", True, 10**5000]
    wrong += [] if without is None else [without]
    for value in wrong:
        given = (value,) if name == "test_steps" else value
        with pytest.raises(ValueError, match=f"{name} must be {KIND[name]}.*, got "):
            Config("a/b", **{name: given})


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_at_their_limits_are_taken(name: str) -> None:
    for value in {LIMITS[name].least, LIMITS[name].most} - {LIMITS[name].without}:
        given = (value,) if name == "test_steps" else value
        assert getattr(Config("a/b", **{name: given}), name) == given


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learner": "reptile"}, "learner must be one of maml, fomaml, .*, got 'reptile'"),
        ({"encoder": None}, "encoder must be one of auto, input, .*, got None"),
        (
            {"problem": "../../x"},
            "problem must be a name like regression/sinusoid .*, got '../../x'",
        ),
        ({"problem": "/etc"}, "problem must be a name like"),
        ({"problem": "a\n"}, "problem must be a text, got"),
        ({"options": {"../../x": 1}}, "name of an option must be a word .*, got '../../x'"),
        ({"options": {"x": math.nan}}, "the option x must be a finite number, .*, got nan"),
        ({"options": {"x": {1, 2}}}, "the option x must be .*, got {1, 2}"),
        ({"options": {"x": [[[[[1]]]]]}}, "the option x must be"),
        ({"options": {"x": 10**5000}}, "the option x must be .*, got a very long int"),
        ({"options": [1]}, "options must be names with values, got"),
    ],
)
def test_words_and_options_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**{"problem": "a/b", **settings})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[]", "a config must be settings with values, got"),
        ('{"problem": "a"}', "a config must have all settings, but has no align, average, "),
        ('{"lambda": 1, "x": 2}', r"a config has no settings \['lambda', 'x'\]"),
    ],
)
def test_what_is_no_config_is_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.read(json.loads(change))


def test_a_record_is_read_back_with_settings_that_came_later() -> None:
    config = Config("a/b", test_steps=(1, 5), options={"a": [1, {"b": None}]})
    record = config.record()
    assert Config.read(record) == config
    for one in fields(Config):
        if one.metadata.get("later"):
            del record[one.name]
    assert Config.read(record) == config
    with pytest.raises(ValueError, match="test_steps must be a list, each a whole number"):
        Config.read({**record, "test_steps": 7})
