"""A simpler case that fails in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fuzz.draw_case import Case
from fuzz.run import Finding, Tally, run_case

SIMPLE: dict[str, Any] = {
    "unequal": False,
    "tasks": 3,
    "support": 3,
    "queries": 3,
    "extractor": "inputs",
}
SIMPLE_OPTIONS: dict[str, dict[str, Any]] = {
    "options": {"lr": 0.1, "steps": 1, "first_order": False, "per": "element", "per_step": False},
    "encoding": {"detach": False, "metadata": "support", "lazy": False, "select": None},
    "regularizer": {
        "lam": 0.7,
        "heads": 1,
        "normalize": "sum",
        "align": "none",
        "top_k": None,
        "queries": 1.0,
        "head": None,
        "chunk_size": None,
    },
}


def shrink(finding: Finding) -> Finding:
    """The finding on the simplest case that still has it; each part is tried once."""
    changed = True
    while changed:
        changed = False
        for simpler in _simpler(finding.case):
            if (smaller := _same(simpler, finding)) is not None:
                finding, changed = smaller, True
                break
    return finding


def _same(case: Case, finding: Finding) -> Finding | None:
    tally = Tally()
    run_case(case, tally)
    kinds = (finding.way, finding.kind)
    return next((f for f in tally.findings if (f.way, f.kind) == kinds), None)


def _simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler in one respect."""
    model = case.model
    for i in range(len(model.layers)):
        rest = model.layers[:i] + model.layers[i + 1 :]
        yield replace(case, model=replace(model, layers=rest))
    if model.extras:
        yield replace(case, model=replace(model, extras=()))
    if model.head != "linear":
        yield replace(case, model=replace(model, head="linear"))
    for name, value in SIMPLE.items():
        if getattr(case, name) != value:
            yield replace(case, **{name: value})
    for group, simple in SIMPLE_OPTIONS.items():
        options = getattr(case, group)
        for name, value in simple.items():
            if name in options and options[name] != value:
                yield replace(case, **{group: {**options, name: value}})
