"""The table of engines: what it shows is what was measured and what `choose` decides by."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest
from trlearner.experiments.bench import crossover, timing

from trlearner.engines import choose

ROWS = {
    "images": crossover.small(2, 3, **crossover.TINY),
    "no norm": lambda: crossover.of_first_order(
        crossover.without_norm(crossover.conv("", 1, tasks=2, **crossover.TINY))
    ),
    "poses": lambda: crossover.of_first_order(crossover.pose(16, 4, steps=1, tasks=2)),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path, printed = tmp_path_factory.mktemp("crossover") / "crossover.json", StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(crossover, "ROWS", ROWS)
        patch.setattr(timing, "TURN", 0.0)
        patch.setattr(choose, "HEAVY", 1e6)
        for name in ROWS:
            crossover.main(["--rows", name, "--rounds", "3", "--json", str(path)])
    return json.loads(path.read_text())["cases"], printed.getvalue()


@pytest.mark.full
def test_rows_are_added_to_the_file_and_tables_show_them(ran):
    written, printed = ran
    assert list(written) == list(ROWS)
    for name, found in written.items():
        ms = found["median_ms"]
        assert list(ms) == list(crossover.ENGINES)
        line = next(line for line in printed.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2:4] == [f"{ms['batched'] / ms[e]:.2f}" for e in ("loop", "channels_last")]
        assert cells[4:6] == ["1", f"`{found['auto']}`"]
        assert float(cells[6]) == pytest.approx(ms[found["auto"]] / min(ms.values()), abs=5e-3)


@pytest.mark.full
def test_operations_are_those_of_a_forward_pass_by_hand(ran):
    # 10 samples: two 3 x 3 convolutions, 1 to 4 and 4 to 4 filters, and the head on 4 x 4 pixels
    convolutions = 2 * 9 * (16 * 16 * 4 + 8 * 8 * 4 * 4)
    by_hand = 10 * (convolutions + 2 * 4 * 4 * 4 * 5)
    assert ran[0]["images"]["operations"] == ran[0]["no norm"]["operations"] == by_hand


@pytest.mark.full
def test_auto_takes_what_the_limit_says(ran):
    for found in ran[0].values():
        heavy = found["operations"] > 1e6
        assert found["auto"] == ("channels_last" if heavy else "batched")
    assert {found["auto"] for found in ran[0].values()} == {"channels_last", "batched"}
