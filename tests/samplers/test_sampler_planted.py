"""The study of planted structure: what is planted, that a sampler finds it, and the tables."""

import pytest
import torch
from trlearner.experiments.evidence.sampler import __main__ as command
from trlearner.experiments.evidence.sampler.compare import Settings, run
from trlearner.experiments.evidence.sampler.planted import SETS
from trlearner.experiments.evidence.sampler.table import cost_table, planted_table


@pytest.mark.parametrize("kind", list(SETS))
def test_sets_follow_from_their_seed(kind: str) -> None:
    one, same, other = SETS[kind](1), SETS[kind](1), SETS[kind](2)
    for name in ("pool", "held_out", "test"):
        assert torch.equal(getattr(one, name).query.x, getattr(same, name).query.x)
        assert not torch.equal(getattr(one, name).query.x, getattr(other, name).query.x)
    assert len(one.marked) == len(one.pool)


def test_half_of_the_tasks_have_labels_that_say_nothing() -> None:
    """By the nearest class mean of their own support samples."""
    planted = SETS["shuffled labels"](0)
    assert planted.marked.float().mean() == 0.5
    x, y = planted.pool.support.x, planted.pool.support.y
    means = torch.stack([x[y == c].reshape(len(x), -1, x.shape[2]).mean(1) for c in range(3)], 1)
    asked, truth = planted.pool.query.x, planted.pool.query.y
    right = (torch.cdist(asked, means).argmin(2) == truth).float().mean(1)
    assert right[planted.marked].mean() < 0.4
    assert right[~planted.marked].mean() > 0.5
    counts = torch.nn.functional.one_hot(y, 3).sum(1)
    assert (counts == 5).all()  # shuffled, not drawn anew


def test_a_family_is_rare() -> None:
    planted = SETS["rare family"](0)
    assert planted.marked.float().mean() == pytest.approx(0.1)


@pytest.mark.full
@pytest.mark.parametrize(
    "arm", ["adaptive", pytest.param("adaptive, held out", marks=pytest.mark.slow)]
)
def test_tasks_with_shuffled_labels_lose_weight(arm: str) -> None:
    """Within few steps of one seed; the study has more of both, and the interval."""
    found = run("shuffled labels", arm, 0, Settings(steps=100))
    assert found["ratio"] < 0.6


def test_the_command_prints_and_keeps_what_it_found(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "planted.json"
    command.main(
        ["planted", "--seeds", "1", "--steps", "1", "--sets", "all sound", "--out", str(out)]
    )
    told = capsys.readouterr().out
    assert told.count("| all sound |") == 4
    command.main(["planted", "--show", str(out)])
    assert capsys.readouterr().out == told


def test_tables_pair_by_seed() -> None:
    runs = [
        {"set": "s", "arm": arm, "seed": seed, "test_loss": seed + loss, "ratio": ratio}
        for arm, loss, ratio in (
            ("uniform", 1.0, 1.0),
            ("hard", 1.0, 2.0),
            ("adaptive", 0.5, 1.0),
            ("adaptive, held out", 0.5, 0.25),
        )
        for seed in range(3)
    ]
    text = planted_table(runs)
    assert "| s | adaptive, held out | 1.500 ± 2.484 | -0.500 ± 0.000 | 0.25 |" in text
    cost = {"net": "n", "engine": "e", "tasks": 4, "held_out": False, "without": 2.0}
    text = cost_table([{**cost, "with_sampler": 2.2, "added": 0.1}])
    assert "| n | e | 4 | the next batch | 2.00 | 2.20 | 10 % |" in text
