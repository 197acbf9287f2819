"""The record of a bench as a plot: speed over tasks, and time over its floor by workload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from trlearner.experiments.bench.ours import ENGINES, PLAIN
from trlearner.experiments.bench.peers import BASE, PEERS
from trlearner.experiments.bench.record import times
from trlearner.experiments.reporting import canvas

CHOOSES = "auto"
"""Is one of the other engines, and would hide it."""


def plot(found: Mapping[str, Any]) -> Figure:
    """What `record.record` returned, of steps without the relation term.

    A panel for each network that was timed with several numbers of tasks, then one for all workloads.
    """
    workloads = found["workloads"]
    families = by_tasks(workloads)
    floored = {n: w for n, w in workloads.items() if w["floor"]}
    figure, places = canvas.grid(len(families) + bool(floored))
    names = [*PEERS, *(f"{engine}{PLAIN}" for engine in ENGINES if engine != CHOOSES)]
    for place, (family, sizes) in zip(places, families.items(), strict=False):
        _speeds(place, family, {tasks: workloads[n] for tasks, n in sizes.items()}, names)
    if floored:
        _floors(places[-1], floored, names)
    canvas.legend(figure, places)
    return figure


def by_tasks(names: Mapping[str, object]) -> dict[str, dict[int, str]]:
    """Names of workloads such as ``sinusoid-16``: by network, then by the number of tasks.

    Example:
        >>> by_tasks(dict.fromkeys(["net-16", "net-4", "conv4-1step", "one-2"]))
        {'net': {4: 'net-4', 16: 'net-16'}}
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := re.fullmatch(r"(.+)-(\d+)", name):
            found.setdefault(match[1], {})[int(match[2])] = name
    return {
        family: dict(sorted(sizes.items()))
        for family, sizes in found.items()
        if sizes.keys() and len(sizes) > 1
    }


def look(number: int, name: str) -> dict[str, Any]:
    """Peers are hollow."""
    return canvas.look(number) | ({"mfc": "white"} if name in PEERS else {})


def _speeds(place: Axes, family: str, sizes: Mapping[int, Any], names: list[str]) -> None:
    for number, name in enumerate(names):
        points = {
            tasks: there[name][times(BASE)]
            for tasks, workload in sizes.items()
            if name in (there := workload["contenders"]) and there[name][times(BASE)] is not None
        }
        if points:
            place.loglog([*points], [*points.values()], label=name, **look(number, name))
    place.set_xticks([*sizes], [str(tasks) for tasks in sizes])
    place.minorticks_off()
    place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.yaxis.set_major_formatter("{x:g}")
    place.set(title=family, xlabel="tasks", ylabel=f"speed, {BASE} = 1")
    place.grid(alpha=0.3)


def _floors(place: Axes, workloads: Mapping[str, Any], names: list[str]) -> None:
    for number, name in enumerate(names):
        points = {
            row: workload["contenders"][name]["times_floor"]
            for row, workload in enumerate(workloads.values())
            if name in workload["contenders"]
        }
        if points:
            style = {**look(number, name), "ls": ""}
            place.plot([*points.values()], [*points], label=name, **style)
    place.axvline(1, color="grey", lw=1)
    place.set_xscale("log")
    place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.xaxis.set_major_formatter("{x:g}")
    place.xaxis.set_minor_locator(NullLocator())
    place.set_yticks(range(len(workloads)), [*workloads])
    place.invert_yaxis()
    place.set(title="time over the floor", xlabel="plain passes = 1")
    place.grid(alpha=0.3)
