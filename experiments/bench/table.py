"""The table, and what it comes to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trlearner.experiments.bench.ours import OURS, PLAIN
from trlearner.experiments.bench.peers import BASE, JAX, PEERS
from trlearner.experiments.bench.session import Found, Row

SLOW_START = 0.5
"""Seconds of a first step to be listed, if it is twice as long as others, too."""


@dataclass(frozen=True)
class Summary:
    """Who is fastest on a workload without TRLearner; milliseconds a step by name."""

    peer: tuple[str, float] | None
    jax: float | None
    ours: tuple[str, float] | None

    def ahead(self, of: float | None) -> float | None:
        """How many times as fast as `of` milliseconds our best engine is."""
        return None if of is None or self.ours is None else of / self.ours[1]


def summary(found: Found) -> Summary:
    """The best peer (JAX apart, for it is no PyTorch), JAX, and our best engine."""

    def best(names: Mapping[str, object]) -> tuple[str, float] | None:
        plain = {n: r for n, r in found.rows.items() if n in names and r.variant == PLAIN}
        pairs = [(n, row.timing.median) for n, row in plain.items() if n != JAX]
        return min(pairs, key=lambda pair: pair[1], default=None)

    jax = found.rows.get(JAX)
    return Summary(best(PEERS), jax and jax.timing.median, best(OURS))


def relative(found: Found, name: str) -> float | None:
    """How many times as fast as the plain loop on `higher` a contender is."""
    base = found.rows.get(BASE)
    return base and base.timing.median / found.rows[name].timing.median


def table(results: Mapping[str, Found], rounds: int) -> str:
    """Milliseconds a meta-step, and the speed relative to `BASE`: one row a contender."""

    def cell(found: Found, name: str, row: Row) -> str:
        times = relative(found, name)
        speed = "" if times is None else f" ({_digits(times)})"
        turns = len(row.timing.milliseconds)
        return f"{_digits(row.timing.median)}{speed}" + (f" [{turns}]" if turns < rounds else "")

    few = any(
        len(row.timing.milliseconds) < rounds
        for found in results.values()
        for row in found.rows.values()
    )
    lines = [
        f"Milliseconds a meta-step, optimizer included: medians of {rounds} turns"
        + (", or of so many as [brackets] say" if few else "")
        + ".",
        f"In parentheses the speed as a multiple of '{BASE}'. No peer has a relation term.",
        "",
        *_grid(results, "peers", PEERS, cell),
        *_grid(results, "trlearner, by engine", OURS, cell),
    ]
    return "\n".join(lines)


def floors(results: Mapping[str, Found]) -> str:
    """How many times as long as its floor each contender takes, and what the floor is."""

    def cell(found: Found, name: str, row: Row) -> str:
        least = None if found.floor is None else found.floor.milliseconds(row.variant)
        return "" if least is None else _digits(row.timing.median / least)

    def counted(found: Found) -> str:
        assert found.floor is not None
        work = found.floor.work[PLAIN]
        return f"{_scaled(work.flops)}, {_scaled(work.bytes)}B"

    known = {name: found for name, found in results.items() if found.floor is not None}
    if not known:
        return ""
    lines = [
        "Times the floor: the time of plain forward and backward passes of the same network over as many",
        "samples, in the same turns, for as many floating-point operations as the meta-step has.",
        "",
        *_grid(known, "peers", PEERS, cell),
        *_grid(known, "trlearner, by engine", OURS, cell),
        f"{'operations and bytes, without the term':<42}"
        + "".join(f"{counted(found):>{_width(name)}}" for name, found in known.items()),
        "",
    ]
    return "\n".join(lines)


def starts(results: Mapping[str, Found]) -> str:
    """The seconds of first steps that trace or compile."""

    def late(row: Row) -> bool:
        return row.start.seconds >= max(SLOW_START, 2e-3 * row.timing.median)

    names = {n for found in results.values() for n, row in found.rows.items() if late(row)}
    lines = _grid(
        results,
        "first step, seconds",
        {n: None for n in (*PEERS, *OURS) if n in names},
        lambda _, __, row: f"{row.start.seconds:.1f}" if late(row) else "",
    )
    return "\n".join(lines) if names else ""


def conclusions(results: Mapping[str, Found]) -> str:
    """Our best engine beside the best peer and JAX, a line a workload; then what is missing."""
    lines = ["Without TRLearner, our best engine:"]
    for name, found in results.items():
        best = summary(found)
        if best.ours is None:
            continue
        parts = [f"{name}: '{best.ours[0]}'"]
        if best.peer:
            parts.append(
                f"{best.peer[1] / best.ours[1]:.2f} times as fast as the best peer, '{best.peer[0]}'"
            )
        if best.jax:
            parts.append(f"{best.jax / best.ours[1]:.2f} times as fast as '{JAX}'")
        lines.append("  " + ", ".join(parts))
    missing = {n: why for found in results.values() for n, why in found.left_out.items()}
    lines += [f"Left out: '{name}': {why}" for name, why in missing.items()]
    return "\n".join(lines)


def disturbance(results: Mapping[str, Found], threads: int) -> str:
    """Who got less than all of a core, or took more than `threads` of them; else nothing."""
    shares = {
        f"'{name}' on {workload}": row.timing.busy
        for workload, found in results.items()
        for name, row in found.rows.items()
    }
    if not shares:
        return ""
    (most, high), middle = (
        max(shares.items(), key=lambda s: s[1]),
        statistics.median(shares.values()),
    )
    lines = []
    if middle < 0.9:
        lines.append(
            f"Others used this machine: contenders ran for {middle:.0%} of their time (median). "
            "Ratios may hold; do it again for milliseconds."
        )
    if high > threads + 0.1:
        lines.append(f"{most} used {high:.1f} threads, not {threads}: no fair comparison.")
    return "\n".join(lines)


def _grid(
    results: Mapping[str, Found],
    title: str,
    names: Mapping[str, object],
    cell: Callable[[Found, str, Row], str],
) -> list[str]:
    """A head and one line for every name that has a row anywhere."""
    lines = [f"{title:<36}" + "".join(f"{name:>{_width(name)}}" for name in results)]
    for name in names:
        cells = [
            cell(found, name, found.rows[name]) if name in found.rows else ""
            for found in results.values()
        ]
        if any(cells):
            lines.append(
                f"  {name:<34}"
                + "".join(f"{t:>{_width(n)}}" for n, t in zip(results, cells, strict=True))
            )
    return [*lines, ""] if len(lines) > 1 else []


def _width(workload: str) -> int:
    """Of its column."""
    return max(18, len(workload) + 2)


def _scaled(value: float) -> str:
    """Three digits and a unit, e.g. ``1.25 G``."""
    power = min(4, int(math.log10(value)) // 3) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


def _digits(value: float) -> str:
    """One decimal; none from 100 on, two below 1."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
