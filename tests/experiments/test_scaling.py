"""The cost model of several processes finds the constants that times were made with."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from rank_problem import Problem
from ranks import Ranks
from trlearner.experiments.bench import scaling

import trlearner as tr
from trlearner.distributed import own_tasks, sync_gradients

pytest.importorskip("scipy")
CORES = 2
TRUE = {"adapt": 7e-5, "cross": 9e-7, "latency": 3e-4, "per byte": 2e-8, "overhead": 0.012}


def seconds(row: dict) -> float:
    """The formula of the module, written out."""
    ranks, tasks, thousands = row["ranks"], row["tasks"], row["parameters"] / 1000
    fullest = -(-tasks // ranks)
    alone = TRUE["adapt"] * thousands * fullest
    asking = TRUE["cross"] * thousands * fullest * tasks * row["queries"]
    crowd = ranks / CORES if ranks > CORES else 1
    wire = row["calls"] * (ranks - 1) * TRUE["latency"] + row["bytes"] * TRUE["per byte"]
    return (alone + asking + TRUE["overhead"]) * crowd + wire


def rows() -> list[dict]:
    found = []
    for ranks in (1, 2, 4):
        for size in scaling.SIZES:
            learner, reg = scaling.made(size["hidden"], size["queries"])
            parameters, chosen = scaling.numbers_of(learner), 4 * round(10 * size["queries"])
            everything = 4 * scaling.numbers_of(learner, reg)
            sent = scaling.step_bytes(ranks, size["tasks"], everything, 4 * 32, chosen, chosen)
            row = {**size, "ranks": ranks, "parameters": parameters, "calls": 9, "bytes": sent}
            found.append({**row, "seconds": seconds(row)})
    return found


def test_the_fit_finds_what_times_were_made_with() -> None:
    found = dict(zip(scaling.TERMS, scaling.fit(rows(), CORES), strict=True))
    assert found == pytest.approx(TRUE, rel=1e-6)


def test_the_fit_stands_noise_and_goes_nowhere_below_zero() -> None:
    noise = torch.Generator().manual_seed(0)
    noisy = rows()
    for row in noisy:
        row["seconds"] *= 1 + 0.05 * torch.randn(1, generator=noise).item()
    found = dict(zip(scaling.TERMS, scaling.fit(noisy, CORES), strict=True))
    assert found == pytest.approx(TRUE, rel=0.4)
    for row in noisy:
        row["seconds"] -= 9 * (row["ranks"] - 1) * TRUE["latency"]
        row["seconds"] = max(row["seconds"], 0.001)
    assert min(scaling.fit(noisy, CORES)) >= 0


def sent(rank: int, size: int) -> tuple[int, int]:
    """Bytes of a step, as counted and by the formula."""
    learner, reg = scaling.made(hidden=8, queries=0.3)
    x = torch.rand(6, 15, 1)
    batch = tr.TaskBatch(support=(x[:, :5], x[:, :5]), query=(x[:, 5:], x[:, 5:]))
    step = tr.MetaStep(learner, reg)
    with scaling.Traffic() as traffic:
        step(own_tasks(batch)).loss.backward()
        sync_gradients(learner, reg)
    parameters = 4 * scaling.numbers_of(learner, reg)
    headers = scaling.HEADERS + len(list(step.parameters()))
    formula = scaling.step_bytes(size, 6, parameters, 4 * scaling.DIM, 4 * 3, 4 * 3, headers)
    return traffic.sent.total(), formula


def test_the_formula_of_bytes_is_what_is_counted(two: Ranks) -> None:
    for counted, formula in two(sent):
        assert counted == formula


def counted(rank: int, size: int) -> tuple[dict[str, int], dict[str, int], int]:
    """Of a step of MAML with tasks ``[3, 2]``."""
    problem = Problem([3, 2])
    learner, reg = problem.made()
    step = tr.MetaStep(learner, reg)
    share = problem.batch([slice(0, 3), slice(3, 5)][rank])
    with scaling.Traffic() as traffic:
        step(share).loss.backward()
        sync_gradients(learner, reg)
    return traffic.calls, traffic.sent, sum(p.numel() for p in step.parameters())


def test_bytes_on_the_wire_are_those_counted_by_hand(two: Ranks) -> None:
    """Tasks [3, 2], 6 queries of 2 inputs and 3 outputs, embeddings of 5, all float64."""
    tasks = [3, 2]
    for rank, (calls, sent, numbers) in enumerate(two(counted)):
        mine, theirs = tasks[rank], tasks[1 - rank]
        assert calls == {"all_gather_into_tensor": 5, "all_to_all_single": 3, "all_reduce": 1}
        # The rank with fewer tasks is filled up: 3 rows go either way.
        rows = 3 * 8 * (5 + 6 * 2)
        # Nine whole numbers about the rank, three losses, a byte for every parameter.
        assert sent["all_gather_into_tensor"] == rows + 8 * 9 + 8 * 3 + 5
        # A mixture of each of the other's tasks goes there, a gradient of each that came goes back. Of a
        # task's row only the embedding is wanted a gradient of: inputs are no parameters.
        assert sent["all_to_all_single"] == (theirs + mine) * 8 * 6 * 3 + theirs * 8 * 5
        assert sent["all_reduce"] == 8 * numbers


def test_what_was_not_measured_is_said_to_be_a_models_statement(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fitted.json"
    path.write_text(json.dumps({"fitted": TRUE}))
    scaling.say(path)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("a MODEL's statement, not a measurement")
    assert len(lines) == 6
    # 12 ms and four tasks of 161.601 thousand parameters.
    assert "8 devices,    32 tasks, top_k=None: adapt 0.0572 s" in lines[2]


@pytest.mark.slow
def test_it_measures_real_processes(tmp_path: pathlib.Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "scaling.json"
    arguments = ["scaling", "--ranks", "1", "2", "--repeats", "1", "--out", str(path)]
    monkeypatch.setattr("sys.argv", arguments)
    scaling.main()
    found = json.loads(path.read_text())
    assert len(found["rows"]) == 2 * len(scaling.SIZES)
    assert all(row["seconds"] > 0 and row["model"] > 0 for row in found["rows"])
    assert all((row["bytes"] > 0) == (row["ranks"] == 2) for row in found["rows"])
