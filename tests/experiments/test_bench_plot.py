"""The bench's plot shows what its record says."""

from __future__ import annotations

from typing import Any

from trlearner.experiments.bench import plot
from trlearner.experiments.bench.peers import BASE


def workload(**speeds: float) -> dict[str, Any]:
    names = {"base": BASE, "vmap": "vmap(grad)", "ours": "batched", "term": "batched + TRLearner"}
    contenders = {
        names[key]: {"times_plain_higher": value, "times_floor": 10 / value}
        for key, value in speeds.items()
    }
    return {"contenders": contenders, "floor": {"some": "floor"}}


def test_speeds_over_tasks_and_times_over_the_floor() -> None:
    found = {
        "net-16": workload(base=1, vmap=4, ours=5, term=3),
        "net-4": workload(base=1, ours=2),
        "conv-1step": workload(base=1, ours=1.5),
    }
    figure = plot.plot({"workloads": found})
    speeds, floors = figure.axes
    assert speeds.get_title() == "net"
    lines = {line.get_label(): line.get_xydata().tolist() for line in speeds.lines}
    assert lines == {
        BASE: [[4, 1], [16, 1]],
        "vmap(grad)": [[16, 4]],
        "batched": [[4, 2], [16, 5]],
    }
    points = {line.get_label(): line.get_xydata().tolist() for line in floors.lines}
    assert points["batched"] == [[2, 0], [5, 1], [10 / 1.5, 2]]
    assert [label.get_text() for label in floors.get_yticklabels()] == list(found)


def test_without_a_floor_or_several_sizes_there_is_less_to_draw() -> None:
    alone = workload(base=1, ours=2) | {"floor": None}
    assert plot.plot({"workloads": {"net-4": alone, "net-16": alone}}).axes[0].get_title() == "net"
    assert not plot.plot({"workloads": {"net-4": alone}}).axes
