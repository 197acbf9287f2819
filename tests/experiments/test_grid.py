from pathlib import Path

import pytest
from trlearner.experiments.data.files import read_json
from trlearner.experiments.presets.config import Config
from trlearner.experiments.reporting import archive
from trlearner.experiments.runs import grid

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "runs" / "runs.zip"
BASE = Config("regression/sinusoid", heads=8)


def test_the_name_of_a_run_is_what_it_was():
    """If this fails, every result that anybody has is done again: then raise `config.FORMAT`."""
    assert Config("regression/sinusoid").hash() == "1e5c840013e6"
    config = Config(
        "a/b", learner="anil", lam=0.0, seed=3, test_steps=(1, 5), top_k=2, options={"omega": 1.0}
    )
    assert config.hash() == "1a551c9357fa"
    assert Config.read(config.record()) == config


@pytest.mark.skipif(not RESULTS.exists(), reason="the results lie beside the sources only")
def test_committed_runs_lie_where_their_hashes_say():
    """Settings that came later must not rename them."""
    folders = archive.folders(RESULTS)
    assert len(folders) > 20
    for folder in folders:
        assert Config.read(read_json(folder / "config.json")).hash() == folder.name


def test_a_later_setting_counts_once_it_is_used():
    names = {Config("a/b", sampler=kind).hash() for kind in ("none", "hard", "adaptive")}
    assert len(names) == 3
    record = Config("a/b").record()
    del record["sampler"]  # as it was written before there was one
    assert Config.read(record) == Config("a/b")


def test_every_combination_comes_seed_by_seed():
    runs = grid.expand(BASE, {"lam": [0.1, 1.0], "learner": ["maml", "anil"], "seed": [0, 1]})
    found = [(run.seed, run.lam, run.learner) for run in runs]
    assert found == [(s, lam, x) for s in (0, 1) for lam in (0.1, 1.0) for x in ("maml", "anil")]
    assert {run.heads for run in runs} == {8}


def test_without_the_term_its_settings_make_no_other_run():
    runs = grid.expand(BASE, {"lam": [0, 0.1], "heads": [1, 2], "inner_steps": [1, 5]})
    found = {(run.lam, run.heads, run.inner_steps) for run in runs}
    assert found == {(0.0, 8, 1), (0.0, 8, 5), *((0.1, h, s) for h in (1, 2) for s in (1, 5))}
    assert len(runs) == len(found)


def test_whole_numbers_and_fractions_are_the_same_run():
    [whole] = grid.expand(BASE, {"lam": [1]})
    [fraction] = grid.expand(BASE, {"lam": [1.0]})
    assert whole.hash() == fraction.hash()


def test_options_vary_one_by_one():
    base = Config("a/b", options={"omega": 1.0, "kind": "x"})
    runs = grid.expand(base, {"options.omega": [2.0, 3.0]})
    assert [run.options for run in runs] == [{"omega": w, "kind": "x"} for w in (2.0, 3.0)]


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        ({"lamda": [0.1]}, "Only settings can vary: align, .* got 'lamda'"),
        ({"lam": []}, "lam must be given one value or more, got none"),
    ],
)
def test_senseless_axes_are_refused(vary, says):
    with pytest.raises(ValueError, match=says):
        grid.expand(BASE, vary)
