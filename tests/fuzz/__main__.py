"""The fuzzer's command; see docs/fuzz.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from fuzz.child import tallies
from fuzz.draw_case import Case, draw
from fuzz.run import COLUMNS, EAGER, REFERENCE, Finding, Tally, run_number, settings
from fuzz.shrink import shrink


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs cases until time is up or there were enough; returns 1 if something was found."""
    options = _parser().parse_args(arguments)
    tally, started = Tally(), time.monotonic()
    try:
        if options.case is not None:
            _one(options.case, tally)
        else:
            _many(options, tally, started)
    except KeyboardInterrupt:
        print("interrupted; so far:")
    print(table(tally, time.monotonic() - started))
    return 1 if tally.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fuzz", description="Engines must agree on random cases.")
    parser.add_argument("--seed", type=int, default=0, help="the first case is 1,000,000 * seed")
    parser.add_argument("--minutes", type=float, default=5.0, help="stop after so long")
    parser.add_argument("--eager", type=int, help="stop after so many comparisons of eager engines")
    parser.add_argument("--traced", type=int, help="... and so many of `traced`")
    parser.add_argument("--compiled", type=int, help="... and so many of `compiled`")
    parser.add_argument("--case", type=int, help="run this case only, and print what it is")
    return parser


def _one(number: int, tally: Tally) -> None:
    _describe(draw(number))
    with settings():
        run_number(number, tally)
        for finding in tally.findings:
            _report(finding)
            print("and still so on this simpler case:")
            _report(shrink(finding))


def _many(options: argparse.Namespace, total: Tally, started: float) -> None:
    said = started
    wanted = {
        EAGER: options.eager,
        ("traced",): options.traced,
        ("compiled",): options.compiled,
    }
    for tally in tallies(1_000_000 * options.seed):
        total.merge(tally)
        for finding in tally.findings:
            _report(finding)
        now = time.monotonic()
        if now - said > 30:
            said = now
            progress = f"{total.cases} cases, {total.compared(*EAGER)} comparisons of eager engines"
            print(f"{now - started:6.0f} s  {progress}, {len(total.findings)} findings", flush=True)
        goals = [total.compared(*ways) >= goal for ways, goal in wanted.items() if goal is not None]
        if now - started > 60 * options.minutes or (goals and all(goals)):
            return


def _describe(case: Case) -> None:
    for name, value in vars(case).items():
        print(f"  {name}: {value}")


def _report(finding: Finding) -> None:
    print(f"FOUND by case {finding.case.number}, {finding.way}: {finding.kind}")
    print(f"    {finding.text}")
    _describe(finding.case)
    print(flush=True)


def table(tally: Tally, seconds: float) -> str:
    """What was compared and found, a line for each engine and variant."""
    ways = dict.fromkeys(way for way, _ in sorted(tally.counts))
    ordered = [w for w in (REFERENCE, *EAGER, "traced", "compiled") if w in ways]
    ordered += [way for way in ways if way not in ordered]
    lines = [f"{'':18}" + "".join(f"{c:>16}" for c in COLUMNS)]
    lines += [f"{w:18}" + "".join(f"{tally.counts[w, c]:16}" for c in COLUMNS) for w in ordered]
    for title, counts in (("not compared", tally.reasons), ("known faults", tally.faults)):
        if counts:
            lines += ["", f"{title}:", *(f"{n:8}  {text}" for text, n in counts.most_common())]
    lines += [
        "",
        f"{tally.cases} cases in {seconds:.0f} s, torch {torch.__version__}: "
        f"{tally.compared(*EAGER)} comparisons of eager engines, {tally.compared('traced')} of traced, "
        f"{tally.compared('compiled')} of compiled; {len(tally.findings)} findings",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
