"""The bench of the relation term: everything is measured, counted and kept."""

import json
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO

import pytest
from trlearner.experiments.bench import floor, relation, timing
from trlearner.experiments.bench.workload import conv, sinusoid, with_learner

import trlearner as tr
from experiments.test_floor import IN, OUT, QUERIES, TASKS, linear

TINY = {
    "curves": relation.Case(
        partial(sinusoid, 4, steps=1),
        *("batched", "loop", {**relation.FULL, **relation.few(1), **relation.HEAD}),
    ),
    "images": relation.Case(
        partial(
            with_learner,
            "ANIL",
            partial(conv, "images", steps=1, tasks=3, size=8, queries=2, filters=4, blocks=2),
        ),
        *("channels_last", "channels_last", relation.FULL),
    ),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path, printed = tmp_path_factory.mktemp("relation") / "relation.json", StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(relation, "CASES", TINY)
        patch.setattr(timing, "TURN", 0.0)
        for case in TINY:
            relation.main(["--cases", case, "--rounds", "3", "--json", str(path)])
    return json.loads(path.read_text()), printed.getvalue()


@pytest.mark.full
def test_cases_are_added_to_the_file_and_the_table_has_them(ran):
    written, printed = ran
    assert list(written["cases"]) == ["curves", "images"]
    for case, rows in written["cases"].items():
        assert list(rows) == [relation.ALONE, *TINY[case].settings]
        assert f"| {case} | {relation.ALONE} |" in printed
        alone = rows[relation.ALONE]
        assert alone["times_alone"] == alone["work_times_alone"] == alone["over_its_work"] == 1
        for row in rows.values():
            assert row["times_alone"] == pytest.approx(row["median_ms"] / alone["median_ms"])
            assert row["over_its_work"] == row["times_alone"] / row["work_times_alone"]


@pytest.mark.full
def test_asking_fewer_models_is_less_work(ran):
    rows = ran[0]["cases"]["curves"]
    assert rows[relation.ALONE]["flops"] < rows["top_k=1"]["flops"]
    assert rows["top_k=1"]["flops"] < rows["all models, all queries"]["flops"]
    assert rows["head"]["flops"] < rows["all models, all queries"]["flops"]


def test_counted_work_of_asking_is_that_of_the_sum_by_hand():
    """One linear layer: the term adds products of all queries with all models, forward and back."""
    workload = replace(linear(), relation={}, encoder=lambda net: tr.UpdateEncoder(dim=4))
    alone, full = (
        floor.count(relation.step(workload, "loop", {"lam": lam})).flops for lam in (0.0, 0.1)
    )
    product = 2 * QUERIES * IN * OUT
    # Each pair of model and task: forward, and the weight's gradient. The encoder's products are few.
    assert 2 * TASKS * TASKS * product <= full - alone <= 2 * TASKS * TASKS * product * 1.5
