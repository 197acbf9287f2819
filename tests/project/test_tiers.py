"""What the first tier, `make test`, holds: every name of the contracts, and every error text."""

import inspect
from pathlib import Path

import contracts
import pytest

import trlearner as tr

TESTS = Path(__file__).parents[1]
LATER = {"full", "slow"}


@pytest.fixture
def first(collected: list[pytest.Item], request: pytest.FixtureRequest) -> list[pytest.Item]:
    """The tests of the first tier, where the whole suite was collected."""
    config = request.config
    paths = {(config.invocation_params.dir / argument).resolve() for argument in config.args}
    if TESTS not in paths:
        pytest.skip("looks at the whole suite: run pytest without paths")
    return [item for item in collected if not LATER & {m.name for m in item.iter_markers()}]


def parameters(item: pytest.Item) -> set[str]:
    """The names among the parameters of a test."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value for value in values if isinstance(value, str)}


@pytest.mark.parametrize("names", [contracts.LEARNERS, contracts.ENCODERS])
@pytest.mark.parametrize("engine", contracts.ENGINES)
def test_every_engine_meets_every_learner_and_encoder(
    engine: str, names: tuple[str, ...], first: list[pytest.Item]
) -> None:
    met = set().union(*(found for found in map(parameters, first) if engine in found))
    missing = sorted(set(names) - met)
    assert not missing, f"no test of the first tier runs {missing} on engine {engine!r}"


def test_the_contracts_name_every_encoder() -> None:
    encoders = {getattr(tr, name) for name in tr.__all__ if name.endswith("Encoder")} - {tr.Encoder}
    model = contracts.net()
    assert {type(contracts.encoder(name, model)) for name in contracts.ENCODERS} == encoders


def test_every_text_of_an_error_or_a_warning_is_in_the_first_tier(
    collected: list[pytest.Item], first: list[pytest.Item]
) -> None:
    """A test that has many cases keeps one of them there."""
    kept = {item.function for item in first if isinstance(item, pytest.Function)}
    later = {
        f"{item.path.name}::{item.originalname}"
        for item in collected
        if isinstance(item, pytest.Function) and item.function not in kept
        if item.get_closest_marker("slow") is None
        if "match=" in inspect.getsource(item.function)
    }
    assert not later, f"leave a case of these unmarked, for they match texts: {sorted(later)}"
