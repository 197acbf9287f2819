"""One case on every engine, and the tally of many."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fuzz.compare import (
    EXACT,
    SINGLE,
    Broken,
    Refused,
    Tolerance,
    Values,
    attempt,
    differences,
    ill_conditioned,
    not_finite,
    step,
)
from fuzz.draw_case import Case, Problem, build, draw
from fuzz.known import known
from fuzz.variant import VARIANTS, part

REFERENCE = "loop"
EAGER = ("higher", "batched", "channels_last")
TRACED_EVERY, COMPILED_EVERY = 8, 250
"""Of so many cases one runs on these engines, whose graphs take seconds."""
SHARE = 0.3
"""Of the variants, those that a case tries."""
COLUMNS = ("compared", "mismatch", "not finite", "broken", "known", "refused", "ill-conditioned")


@dataclass(frozen=True)
class Finding:
    """Something that should not be."""

    case: Case
    way: str  # the engine or variant
    kind: str  # a column of the table
    text: str


@dataclass
class Tally:
    """What came of the cases so far."""

    cases: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def compared(self, *ways: str) -> int:
        """How many comparisons there were."""
        return sum(self.counts[way, "compared"] for way in ways)

    def merge(self, other: Tally) -> None:
        self.cases += other.cases
        self.counts += other.counts
        self.reasons += other.reasons
        self.faults += other.faults
        self.findings += other.findings

    def add(self, finding: Finding) -> None:
        fault = known(finding.case, finding.way)
        if fault is None:
            self.findings.append(finding)
            self.counts[finding.way, finding.kind] += 1
        else:
            self.faults[fault] += 1
            self.counts[finding.way, "known"] += 1


@contextmanager
def settings() -> Iterator[None]:
    """One thread; attention by its formula, whose kernels have no second derivative; no warnings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def ways_of(number: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The engines of a case, and its variants, each with the engine that it is tried on."""
    random = Random(-number - 1)
    engines = [*EAGER]
    if number % TRACED_EVERY == 0:
        engines.append("traced")
    variants = [
        (name, REFERENCE if name == "collect" else random.choice([REFERENCE, *EAGER]))
        for name in VARIANTS
        if random.random() < SHARE
    ]
    return engines, variants


def run_case(case: Case, tally: Tally) -> None:
    """Compares all that a case is to compare."""
    tally.cases += 1
    if case.single:
        _run(case, ["compiled"], [], SINGLE, tally)
    else:
        _run(case, *ways_of(case.number), EXACT, tally)


def run_number(number: int, tally: Tally) -> None:
    """The case of this number; for some numbers once more in float32, on engine `compiled`."""
    run_case(draw(number), tally)
    if number % COMPILED_EVERY == COMPILED_EVERY // 2:
        run_case(draw(number, single=True), tally)


def _run(
    case: Case,
    engines: list[str],
    variants: list[tuple[str, str]],
    tolerance: Tolerance,
    tally: Tally,
) -> None:
    problem = attempt(lambda: build(case))
    if not isinstance(problem, Problem):
        _failed(case, "building", problem, tally)
        return
    before = {n: t.clone() for n, t in problem.learner.state_dict().items()}
    expected = attempt(lambda: step(problem, REFERENCE))
    if isinstance(expected, Refused | Broken):
        _failed(case, REFERENCE, expected, tally)
        return
    if bad := not_finite(expected):
        tally.add(Finding(case, REFERENCE, "not finite", f"{', '.join(bad)}: not finite"))
        return
    if reason := ill_conditioned(problem, expected):
        tally.counts[REFERENCE, "ill-conditioned"] += 1
        tally.reasons[f"ill-conditioned: {reason}"] += 1
        return

    def check(way: str, run: Callable[[], Values | None]) -> None:
        found = attempt(run)
        if isinstance(found, Refused | Broken):
            _failed(case, way, found, tally)
        elif found is not None:
            _compare(case, way, expected, found, tolerance, tally)

    for engine in engines:
        check(engine, lambda engine=engine: step(problem, engine))
    for name, engine in variants:
        check(name, lambda name=name, engine=engine: VARIANTS[name](problem, engine))
    after = problem.learner.state_dict()
    if changed := [n for n, t in before.items() if not torch.equal(t, after[n])]:
        tally.add(Finding(case, "state", "mismatch", f"{', '.join(changed)}: changed by a step"))


def _compare(
    case: Case, way: str, expected: Values, found: Values, tolerance: Tolerance, tally: Tally
) -> None:
    tally.counts[way, "compared"] += 1
    if bad := not_finite(found):
        tally.add(Finding(case, way, "not finite", f"{', '.join(bad)}: not finite"))
    elif lines := differences(part(expected, found), found, tolerance):
        tally.add(Finding(case, way, "mismatch", "\n    ".join(lines)))


def _failed(case: Case, way: str, failure: Refused | Broken, tally: Tally) -> None:
    if isinstance(failure, Broken):
        tally.add(Finding(case, way, "broken", failure.text))
        return
    tally.counts[way, "refused"] += 1
    first = re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", failure.reason.splitlines()[0])
    tally.reasons[first[:160]] += 1
