"""A few cases of the fuzzer in every run of the suite, and proof that it finds what it is to find."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
import torch
from contracts import later
from torch import Tensor

from fuzz import __main__ as command
from fuzz import child, known, run
from fuzz.compare import EXACT, GRADIENT, Refused, Tolerance, Values, attempt, differences, step
from fuzz.draw_case import WAYS, Case, build, draw
from fuzz.run import EAGER, Finding, Tally, run_case, run_number, settings, ways_of
from fuzz.shrink import shrink
from fuzz.variant import VARIANTS, part
from trlearner.engines import choose

CASES = range(9, 25)

# Values are compared here; annotations are checked while the other tests run.
pytestmark = pytest.mark.unchecked


QUIET = next(n for n in count() if ways_of(n) == ([*EAGER], []))
"""A number that tries no variant and no graph."""


def plain() -> Case:
    """A case without anything special, which every engine and every variant can run."""
    case = draw(QUIET)
    model = replace(
        case.model,
        family="vector",
        first="linear",
        layers=("tanh", "linear"),
        end="nothing",
        head="deep",
        extras=("unused",),
        training=True,
    )
    regularizer = {
        **case.regularizer,
        "heads": 3,
        "lam": 0.7,
        "normalize": "softmax",
        "mixture": "auto",
        "align": "none",
        "top_k": None,
        "queries": 1.0,
        "head": None,
        "chunk_size": None,
    }
    return replace(
        case,
        model=model,
        targets="values",
        tasks=3,
        support=3,
        queries=2,
        unequal=False,
        learner="maml",
        options={"lr": 0.1, "steps": 2, "first_order": False},
        encoder="input",
        extractor="body",
        encoding={"detach": False, "metadata": "support", "select": None},
        regularizer=regularizer,
    )


def tally_of(case: Case) -> Tally:
    tally = Tally()
    with settings():
        run_case(case, tally)
    return tally


def plant(monkeypatch: pytest.MonkeyPatch, engine: str, **parts: Callable[..., Any]) -> None:
    """Changes what functions of an engine return: each part is given that."""
    sound = choose.ENGINES[engine]

    def changed(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: change(getattr(sound, name)(*arguments))

    made = {name: changed(name, change) for name, change in parts.items()}
    monkeypatch.setitem(choose.ENGINES, engine, replace(sound, **made))


# ---- sound engines --------------------------------------------------------------------------------


@pytest.mark.full
def test_engines_agree_on_the_cases_of_the_suite() -> None:
    tally = Tally()
    with settings():
        for number in CASES:
            run_number(number, tally)
    assert [(f.case.number, f.way, f.text) for f in tally.findings] == []
    assert tally.compared(*EAGER) > 2 * len(CASES)  # of three a case
    assert tally.compared("traced") > 0
    assert all(tally.compared(variant) > 0 for variant in VARIANTS)


def test_a_few_hundred_numbers_draw_all_there_is() -> None:
    cases = [draw(number) for number in range(300)]
    assert {c.learner for c in cases} == {"maml", "metasgd", "anil", "tnet", "protonet", "bayes"}
    assert {c.ways for c in cases if c.learner == "bayes"} == {None, WAYS}
    assert {c.encoder for c in cases} == {"input", "labelled", "update", "function"}
    assert {c.model.family for c in cases} == {"vector", "line", "image", "steps"}
    assert {c.regularizer["normalize"] for c in cases} == {"sum", "softmax", "quotient"}
    assert {c.regularizer["align"] for c in cases} == {"none", "sinkhorn", "hungarian"}
    assert {c.unequal for c in cases} == {True, False}


def test_a_number_is_always_the_same_case_and_the_same_values() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    with settings():
        one, other = (step(build(plain()), "loop") for _ in range(2))
    assert differences(one, other, Tolerance(0.0, 0.0)) == []


@pytest.mark.full
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_what_it_is_compared_in(name: str) -> None:
    engine = "loop" if name == "collect" else "batched"
    with settings():
        problem = build(plain())
        expected, found = step(problem, "loop"), VARIANTS[name](problem, engine)
    assert found is not None
    assert differences(part(expected, found), found, EXACT) == []
    assert len(found) > 1
    for wrong in found:
        moved = {**found, wrong: found[wrong] + 1e-6}
        assert len(differences(part(expected, moved), moved, EXACT)) == 1


# ---- planted faults -------------------------------------------------------------------------------


def without_value(t: Tensor) -> Tensor:
    """0, with a derivative of 0 / 0."""
    return (0 * t).sqrt()


FAULTS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "a factor": ("mismatch", {"loss": lambda losses: losses * (1 + 1e-6)}),
    "a wrong order": ("mismatch", {"cross": lambda answers: answers.transpose(0, 1)}),
    "a gradient that is cut": (
        "mismatch",
        {"adapt": lambda fast: {n: t.detach() if "bias" in n else t for n, t in fast.items()}},
    ),
    "a value that is NaN": ("not finite", {"predict": lambda answers: answers * torch.nan}),
    "a gradient that is NaN": (
        "not finite",
        {"loss": lambda losses: losses + without_value(losses)},
    ),
    "a deep error": ("broken", {"predict": lambda answers: answers[:, 99]}),
}


@pytest.mark.parametrize("engine", ["batched", *later(*(e for e in EAGER if e != "batched"))])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, parts = FAULTS[fault]
    plant(monkeypatch, engine, **parts)
    tally = tally_of(plain())
    assert [(f.way, f.kind) for f in tally.findings] == [(engine, kind)]
    assert tally.compared(*EAGER) == 3 - (kind == "broken")


def test_a_fault_of_the_reference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "loop", loss=lambda losses: losses * torch.nan)
    tally = tally_of(plain())
    assert [(f.way, f.kind) for f in tally.findings] == [("loop", "not finite")]
    assert tally.compared(*EAGER) == 0


def test_a_step_that_changes_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build(plain())

    def spoil(answers: Tensor) -> Tensor:
        problem.learner.model.unused.data += 1
        return answers

    monkeypatch.setattr(run, "build", lambda case: problem)
    plant(monkeypatch, "higher", predict=spoil)
    found = [(f.way, f.text) for f in tally_of(plain()).findings]
    assert found == [("state", "model.unused: changed by a step")]


def test_a_clear_refusal_is_counted_with_its_reason() -> None:
    model = replace(plain().model, layers=("centred",))
    tally = tally_of(replace(plain(), model=model, unequal=True, support=5))
    assert tally.findings == []
    assert tally.counts["batched", "refused"] == 1
    (reason,) = tally.reasons
    assert "engine='batched' cannot drop masked samples" in reason


def test_only_what_the_library_says_is_clear() -> None:
    def deep() -> Values:
        raise ValueError("not from the library")

    def ours() -> Values:
        build(replace(plain(), options={"steps": -1}))
        return {}

    assert "ValueError: not from the library" in attempt(deep).text  # type: ignore[union-attr]
    assert isinstance(attempt(ours), Refused)


def test_a_value_is_compared_at_its_own_scale() -> None:
    large, small = torch.tensor([1e3]), torch.tensor([1e-3])
    expected = {"loss": large, GRADIENT + "a": large, GRADIENT + "b": small}
    limit = Tolerance(1e-6, 1e-4)
    assert differences(expected, {**expected, "loss": large + 1e-4}, limit) == []
    assert differences(expected, {**expected, GRADIENT + "b": small + 1e-5}, limit) != []
    assert differences(expected, {**expected, GRADIENT + "b": large}, limit) != []
    assert differences(expected, {"loss": large}, limit) != []
    assert differences(expected, {**expected, "loss": large * torch.nan}, limit) != []


def test_a_known_fault_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = known.Known("a factor", lambda case, way: way == "batched")
    monkeypatch.setattr(known, "KNOWN", (fault,))
    plant(monkeypatch, "batched", loss=lambda losses: 2 * losses)
    plant(monkeypatch, "higher", loss=lambda losses: 2 * losses)
    tally = tally_of(plain())
    assert {f.way for f in tally.findings} >= {"higher"}
    assert "batched" not in {f.way for f in tally.findings}
    assert tally.counts["batched", "known"] == tally.faults["a factor"] == 1


@pytest.mark.full
def test_a_finding_is_shrunk_to_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "higher", adapt=lambda fast: {n: 2 * t for n, t in fast.items()})
    case = replace(plain(), tasks=4)
    with settings():
        small = shrink(Finding(case, "higher", "mismatch", ""))
    assert small.text != ""
    assert small.case.model.layers == ()
    assert (small.case.tasks, small.case.options["steps"], small.case.extractor) == (3, 1, "inputs")


# ---- the command ----------------------------------------------------------------------------------


def test_one_case_is_described_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--case", "1"]) == 0
    told = capsys.readouterr().out
    assert "number: 1\n" in told
    assert "comparisons of eager engines" in told


@pytest.mark.full
def test_a_finding_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "draw", lambda number: plain())
    monkeypatch.setattr(run, "draw", lambda number: plain())
    plant(monkeypatch, "higher", loss=lambda losses: 2 * losses)
    assert command.main(["--case", "5"]) == 1
    told = capsys.readouterr().out
    assert f"FOUND by case {QUIET}, higher: mismatch" in told
    assert "loss: differs by" in told
    assert "still so on this simpler case" in told


def some(counts: int, interrupted: bool = False) -> Iterator[Tally]:
    """Tallies of a comparison each, and then Ctrl-C, or no end."""
    for _ in range(counts):
        tally = Tally(cases=1)
        tally.counts["batched", "compared"] += 1
        yield tally
    if interrupted:
        raise KeyboardInterrupt
    yield from some(counts)


def test_ctrl_c_prints_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "tallies", lambda number: some(3, interrupted=True))
    assert command.main([]) == 0
    told = capsys.readouterr().out
    assert "interrupted; so far:" in told
    assert "3 comparisons of eager engines" in told


def test_enough_comparisons_end_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []
    monkeypatch.setattr(command, "tallies", lambda number: started.append(number) or some(9))
    assert command.main(["--eager", "5", "--seed", "2"]) == 0
    assert started == [2_000_000]
    assert "5 cases" in capsys.readouterr().out


def test_a_case_that_hangs_is_a_finding_and_the_next_one_runs() -> None:
    first, second = islice(child.tallies(4, patience=0.0), 2)
    assert [(f.case.number, f.way) for f in first.findings] == [(4, "process")]
    assert [(f.case.number, f.way) for f in second.findings] == [(5, "process")]


def test_some_numbers_run_on_compiled_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(run, "run_case", lambda case, tally: ran.append(case.single))
    for number in range(run.COMPILED_EVERY):
        run_number(number, Tally())
    assert sum(ran) == 1
    assert len(ran) == run.COMPILED_EVERY + 1
