import csv
import json
import re
from dataclasses import astuple

import fake_study
import numpy as np
import pytest
from fake_study import TASKS, fail, put
from trlearner.experiments.presets.config import Config
from trlearner.experiments.reporting import archive, report, study, tables
from trlearner.experiments.reporting.difference import difference
from trlearner.experiments.reporting.interval import interval
from trlearner.experiments.reporting.wording import number
from trlearner.experiments.runs import grid

SINE, GLYPHS = "regression/sinusoid", "images/omniglot"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A study with everything that can be amiss; its runs and its report."""
    root = tmp_path_factory.mktemp("runs")
    fake_study.gallery(root, seeds=3)
    out = tmp_path_factory.mktemp("report")
    assert report.write(root, out) == out / "report.md"
    return root, out


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cell(table, row, column):
    """A word of a table, by the first name of its row and its header."""
    [line] = [one for one in table.rows if one[0] == row]
    return line[list(table.header).index(column)]


def row(text, start):
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def test_levels_and_differences_are_those_of_the_runs(tmp_path):
    found = {}
    for config in grid.expand(Config(SINE), {"lam": [0, 0.1], "seed": range(4)}):
        found[config.lam, config.seed] = fake_study.draw(config, 1.0, -0.2 * config.lam)
        put(tmp_path, config, found[config.lam, config.seed])
    runs = study.read(tmp_path)
    base, treated = runs.cells(SINE)
    means = [float(found[0.1, seed].mean()) for seed in range(4)]
    assert treated.level() == interval(means)
    expected = difference(np.stack([found[0.1, seed] - found[0, seed] for seed in range(4)]))
    found = astuple(treated.against(base))
    assert found == pytest.approx(astuple(expected), rel=1e-12)
    table = tables.differences(runs, SINE, {"lam": 0}, "test")
    assert cell(table, "MAML", "λ = 0") == "baseline"
    text = number(expected.mean, expected.half_width, sign=True)
    assert cell(table, "MAML", "λ = 0.1") == text + "*" * abs(expected.sign())


def remember(folder, tasks, covered=0.9):
    """Beside a run's result, that of its memory."""
    result = json.loads((folder / "result.json").read_text())
    [found] = result["test"].values()
    found[result["metric"]] = {"summaries": {"mean": float(np.mean(tasks))}, "tasks": list(tasks)}
    found["coverage"] = {"summaries": {"mean": covered}, "tasks": [covered] * len(tasks)}
    (folder / "memory.json").write_text(json.dumps(result))


def test_memories_stand_beside_the_learner_alone_and_the_term(tmp_path):
    found = {}
    for config in grid.expand(Config(SINE), {"lam": [0, 0.1], "seed": range(3)}):
        plain = fake_study.draw(config, 1.0, -0.2 * config.lam)
        found[config.lam, config.seed, False] = plain
        folder = put(tmp_path, config, plain)
        if (config.lam, config.seed) != (0.1, 2):
            found[config.lam, config.seed, True] = 0.1 * plain
            remember(folder, 0.1 * plain, 0.9 + 0.02 * config.seed)
    table = tables.memories(study.read(tmp_path), SINE, "test")
    assert list(table.header) == ["learner", "λ", "arm", "MSE", "minus alone", "in the 95 % band"]
    arms = {line[2]: line for line in table.rows}
    assert [line[1:3] for line in table.rows] == [
        ["0", "alone"], ["0", "memory"], ["0.1", "term"], ["0.1", "term and memory"]
    ]  # fmt: skip
    assert arms["alone"][-2:] == ["baseline", "—"]
    for name, key, seeds, covered in (
        ("memory", (0, True), range(3), "92.0 %"),
        ("term", (0.1, False), range(3), "—"),
        ("term and memory", (0.1, True), range(2), "91.0 %"),
    ):
        lam, memory = key
        gaps = np.stack([found[lam, s, memory] - found[0, s, False] for s in seeds])
        expected = difference(gaps)
        text = number(expected.mean, expected.half_width, sign=True) + "*" * abs(expected.sign())
        part = "" if len(seeds) == 3 else " (2/3)"
        assert arms[name][-2:] == [text + part, covered]
        level = interval([float(found[lam, s, memory].mean()) for s in seeds])
        assert arms[name][3] == number(level.mean, level.half_width) + part
    out = tmp_path / "report"
    page = report.write(tmp_path, out).read_text()
    assert table.markdown() in page and '"Alone" is the learner at λ = 0' in page
    record = next(one for one in rows(out / "memories.csv") if one["arm"] == "memory")
    assert (record["lam"], record["coverage"][:4], record["pairs"]) == ("0.0", "0.92", "3")


def test_a_memory_without_the_learner_alone_has_no_difference(tmp_path):
    config = Config(SINE, lam=0.1)
    remember(put(tmp_path, config, np.ones(TASKS)), np.full(TASKS, 0.5))
    [term, both] = tables.memories(study.read(tmp_path), SINE, "test").rows
    assert term == ["MAML", "term", "1.00", "—", "—"]
    assert both == ["MAML", "term and memory", "0.500", "—", "90.0 %"]


@pytest.mark.full
def test_without_memories_the_report_says_nothing_of_them(gallery):
    page = (gallery[1] / "report.md").read_text()
    assert "memory" not in page.lower()
    assert not (gallery[1] / "memories.csv").exists()


def test_pairs_are_seeds_that_both_have(tmp_path):
    for seed in (0, 1, 2):
        put(tmp_path, Config(SINE, lam=0.0, seed=seed), np.full(TASKS, float(seed)))
    for seed in (1, 2, 3):
        put(tmp_path, Config(SINE, lam=0.1, seed=seed), np.full(TASKS, seed + 0.5))
    base, treated = study.read(tmp_path).cells(SINE)
    found = treated.against(base)
    assert (found.seeds, found.mean) == (2, 0.5)


@pytest.mark.full
def test_a_page_shows_what_is_missing_failed_or_diverged(gallery):
    page = (gallery[1] / "report.md").read_text()
    sine = page.partition(f"## {SINE}")[2]
    anil, metasgd, protonet = (row(sine, name) for name in ("ANIL", "MetaSGD", "ProtoNet"))
    assert anil.split("|")[-3].strip() == "—"
    assert metasgd.split("|")[-2].strip() == "failed †"
    assert protonet.split("|")[-2].strip() == "1 of 3 diverged"
    assert re.search(r"\(2/3\) †", protonet)
    assert "RuntimeError: out of luck" in page.partition("## Failed")[2]


def test_unfinished_runs_are_counted(tmp_path):
    put(tmp_path, Config(SINE))
    page = report.write(tmp_path, tmp_path / "out").read_text()
    assert "0 of 1 runs have ended" in page
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.full
def test_accuracies_are_percent_and_more_is_better(gallery):
    runs = study.read(gallery[0])
    table = tables.results(runs, GLYPHS, "test")
    assert table.title == "images/omniglot: test accuracy (%), higher is better"
    assert re.fullmatch(r"9\d\.\d+ ± \d\.\d+", cell(table, "MAML", "λ = 0"))


@pytest.mark.parametrize(("better", "verdict"), [("lower", 1), ("higher", -1)])
def test_less_is_better_or_worse_as_the_metric_says(tmp_path, better, verdict):
    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal(TASKS)
        put(tmp_path, Config(SINE, lam=0.0, seed=seed), noise, better=better)
        put(tmp_path, Config(SINE, lam=0.1, seed=seed), noise - 1, better=better)
    runs = study.read(tmp_path)
    assert tables.verdict(runs, SINE, runs.cells(SINE)[1], {"lam": 0}, "test") == verdict
    table = tables.wins(runs, {"lam": 0}, "test")
    assert cell(table, "MAML", SINE) == ("1 / 0 / 0" if verdict == 1 else "0 / 0 / 1")


def test_who_diverges_alone_loses(tmp_path):
    nothing = np.full(TASKS, np.nan)
    for seed in range(2):
        put(tmp_path, Config(SINE, "maml", 0.0, seed), np.zeros(TASKS))
        put(tmp_path, Config(SINE, "maml", 0.1, seed), nothing)
        put(tmp_path, Config(SINE, "anil", 0.0, seed), nothing)
        put(tmp_path, Config(SINE, "anil", 0.1, seed), np.zeros(TASKS))
        put(tmp_path, Config(SINE, "tnet", 0.0, seed), nothing)
        put(tmp_path, Config(SINE, "tnet", 0.1, seed), nothing)
    table = tables.wins(study.read(tmp_path), {"lam": 0}, "test")
    counts = [cell(table, learner, SINE) for learner in ("MAML", "ANIL", "T-Net")]
    assert counts == ["0 / 0 / 1", "1 / 0 / 0", "0 / 0 / 0 (1 not compared)"]


def test_other_axes_become_rows_and_share_the_baseline(tmp_path):
    vary = {"lam": [0, 0.1], "heads": [1, 4], "inner_steps": [1, 5], "seed": [0, 1]}
    for config in grid.expand(Config(SINE), vary):
        put(tmp_path, config, fake_study.draw(config, float(config.inner_steps), 0.0))
    runs = study.read(tmp_path)
    assert runs.axes == ["lam", "inner_steps", "heads"]
    table = tables.results(runs, SINE, "test")
    assert list(table.header) == ["inner steps", "heads", "λ = 0", "λ = 0.1"]
    assert [line[:2] for line in table.rows] == [["1", "1"], ["1", "4"], ["5", "1"], ["5", "4"]]
    assert table.rows[0][2] == table.rows[1][2] != table.rows[2][2]  # heads mean nothing at λ = 0
    assert "—" not in str(tables.differences(runs, SINE, {"lam": 0}, "test").rows)


@pytest.mark.full
def test_a_baseline_may_be_any_setting(tmp_path):
    for config in grid.expand(Config(SINE), {"encoder": ["input", "update"], "seed": [0, 1]}):
        put(tmp_path, config, fake_study.draw(config, 1.0, 0.1 * (config.encoder == "update")))
    page = report.write(tmp_path, tmp_path / "out", baseline=["encoder=input"]).read_text()
    assert "test MSE minus that with encoder = input, lower is better" in page
    page = report.write(tmp_path, tmp_path / "out").read_text()
    assert "minus that" not in page  # nothing has λ = 0


def test_problems_with_other_presets_make_no_axis(tmp_path):
    put(tmp_path, Config(SINE, inner_lr=0.01), np.ones(TASKS))
    put(tmp_path, Config(GLYPHS, inner_lr=0.5), np.ones(TASKS))
    runs = study.read(tmp_path)
    assert runs.axes == []
    assert tables.results(runs, SINE, "test").rows == [["MAML", "1.00"]]


@pytest.mark.full
def test_an_axis_of_one_problem_hides_nothing_of_another(tmp_path):
    for lam in (0.0, 0.1):
        put(tmp_path, Config("a/b", lam=lam), [1.0 + lam, 2.0])
        for heads in (2, 4) if lam else (4,):
            put(tmp_path, Config("c/d", lam=lam, heads=heads), [3.0, 4.0])
    page = report.write(tmp_path, tmp_path / "report").read_text()
    part = page.partition("## a/b")[2].partition("## c/d")[0]
    assert re.search(r"\| MAML +\| +1.50 \| +1.55 \|", part)
    found = study.read(tmp_path)
    assert found.cell("a/b", {"lam": 0.1}) is found.cell("a/b", {"lam": 0.1, "heads": 4})
    assert found.cell("c/d", {"lam": 0.1}) is None


@pytest.mark.full
def test_shifted_tasks_have_tables_of_their_own(tmp_path):
    for seed in (0, 1):
        config = Config(SINE, seed=seed)
        far = {"5": {"mse": {"summaries": {"mean": 7.0}, "tasks": [7.0 + seed] * TASKS}}}
        put(tmp_path, config, np.ones(TASKS), shifted=far)
    page = report.write(tmp_path, tmp_path / "out").read_text()
    assert "shifted MSE" in page
    assert re.search(r"\| MAML +\| 7\.5 ± 6\.4 \|", page)


def test_the_main_number_of_inner_steps_is_that_of_training(tmp_path):
    folder = put(tmp_path, Config(SINE, inner_steps=5), np.ones(TASKS))
    text = (folder / "result.json").read_text()
    other = '"test": {"10": {"mse": {"summaries": {"mean": 9.0}, "tasks": [9.0]}}, '
    (folder / "result.json").write_text(text.replace('"test": {', other))
    report.write(tmp_path, tmp_path / "out")
    assert study.read(tmp_path).cells(SINE)[0].level().mean == 1.0
    steps = [(r["inner_steps_at_test"], r["mean"]) for r in rows(tmp_path / "out" / "runs.csv")]
    assert steps == [("10", "9.0"), ("5", "1.0")]


@pytest.mark.full
def test_numbers_are_in_csv_files(gallery):
    cells, runs = (rows(gallery[1] / name) for name in ("cells.csv", "runs.csv"))
    [one] = [r for r in cells if (r["problem"], r["learner"], r["lam"]) == (SINE, "maml", "0.1")]
    assert float(one["difference"]) < 0
    assert float(one["bootstrap_low"]) < float(one["difference"]) < float(one["bootstrap_high"])
    assert (one["seeds"], one["failed"], one["pairs"]) == ("3", "0", "3")
    assert float(one["seconds_per_step"]) == pytest.approx(0.0064)
    assert {r["status"] for r in runs} == {"done", "failed"}


@pytest.mark.full
def test_latex_is_escaped_and_balanced(gallery):
    text = (gallery[1] / "report.tex").read_text()
    body = text.partition("\n")[2]
    for command in ("table", "tabular"):
        assert body.count(f"\\begin{{{command}}}") == body.count(f"\\end{{{command}}}") > 0
    assert body.isascii()
    assert r"test accuracy (\%)" in body
    assert r"failed \dag" in body
    for line in body.splitlines():
        if line.endswith(r"\\"):
            assert line.count(" & ") in (2, 6)


@pytest.mark.full
def test_plots_are_written(gallery):
    names = {path.name for path in gallery[1].iterdir()}
    for plot in ("lam", "lam-difference", "cost"):
        assert {f"{plot}.png", f"{plot}.svg"} <= names
        assert (gallery[1] / f"{plot}.png").stat().st_size > 10_000


@pytest.mark.full
def test_a_second_report_is_the_same_to_the_last_bit(tmp_path):
    for config in grid.expand(Config(SINE), {"lam": [0, 0.1], "seed": [0, 1]}):
        put(tmp_path / "runs", config, fake_study.draw(config, 1.0, 0.0))
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        report.write(tmp_path / "runs", out)
    assert len(list(first.iterdir())) == 10
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.full
def test_what_answers_without_learning_is_beside_the_table(tmp_path):
    told = {"test": {"constant": {"mse": {"mean": 8.3141}}, "support mean": {"mse": {"mean": 9.1}}}}
    put(tmp_path, Config("a/b", lam=0.0), [1.0, 2.0], trivial=told)
    put(tmp_path, Config("a/b", lam=0.1), [1.0, 2.0])
    page = report.write(tmp_path, tmp_path / "report").read_text()
    assert (
        "**test MSE, lower is better; without learning: constant 8.31, support mean 9.10**" in page
    )


def test_words_of_a_cell_cannot_break_a_table():
    table = tables.Table("a_b", ["x|y", "50 %"], [["$&#", "λ"]], names=1)
    assert table.markdown().splitlines()[0] == "| x\\|y | 50 % |"
    assert r"\$\&\# & $\lambda$ \\" in table.latex()


def test_senseless_folders_and_baselines_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold the folders of runs .* but there are none"):
        report.write(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="baseline must be NAME=VALUE, e.g. lam=0, got 'lam'"):
        report.parse(["lam"])
    with pytest.raises(ValueError, match="baseline must name a setting .* got 'lambda'"):
        report.parse(["lambda=0"])


@pytest.mark.full
def test_no_option_of_a_run_becomes_the_name_of_a_file(tmp_path):
    for name in ("lam", "omega"):
        for value in (0.0, 1.0):
            put(tmp_path / "runs", Config(SINE, options={name: value}), np.ones(TASKS) + value)
    report.write(tmp_path / "runs", tmp_path / "out")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {
        *("report.md", "report.tex", "cells.csv", "runs.csv"),
        *("cost.png", "cost.svg", "option-1.png", "option-1.svg", "option-2.png", "option-2.svg"),
    }


@pytest.mark.unchecked
def test_a_run_with_a_path_for_an_option_is_refused_and_writes_nothing(tmp_path):
    folder = put(tmp_path / "runs", Config(SINE), np.ones(TASKS))
    record = {**Config(SINE).record(), "options": {"../../x": 1}}
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{folder.name}.config.json: the name of an option must"):
        report.write(tmp_path / "runs", tmp_path / "a" / "b" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_config_that_is_not_its_folders_is_refused_by_name(tmp_path):
    folder = put(tmp_path, Config(SINE), np.ones(TASKS))
    record = Config(SINE, lam=0.3).record()
    (folder / "config.json").write_text(json.dumps(record))
    said = (
        f"that its folder {folder.name} is named after, got those of {Config(SINE, lam=0.3).hash()}"
    )
    with pytest.raises(ValueError, match=said):
        study.read(tmp_path)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", b"{", "config.json must be JSON, but cannot be read"),
        ("config.json", b"\xff\xfe", "config.json must be JSON, but cannot be read"),
        ("config.json", b"[" * 100_000, "config.json must be JSON, but cannot be read"),
        ("config.json", b"[1]", "config.json must be a JSON object, got a list"),
        ("config.json", b"{}", "config.json: a config must have all settings"),
        ("result.json", b"{}", "result.json must be a result as `trlearner run` writes it"),
        (
            "result.json",
            b'{"metric": "mse", "better": "lower", "test": {"../x": {"mse": {"tasks": []}}}}',
            "result.json must be a result as",
        ),
        ("timing.json", b'{"seconds_per_step": NaN}', "seconds_per_step must be a number, got nan"),
    ],
)
def test_files_that_no_run_wrote_are_refused_by_name(tmp_path, name, text, said):
    (put(tmp_path, Config(SINE), np.ones(TASKS)) / name).write_bytes(text)
    with pytest.raises(ValueError, match=said):
        study.read(tmp_path)


def test_a_link_in_the_place_of_the_report_is_replaced_and_not_followed(tmp_path):
    put(tmp_path / "runs", Config(SINE), np.ones(TASKS))
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("report.md", "report.tex", "runs.csv", "cells.csv", "cost.png", "cost.svg"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    report.write(tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine"


def test_failed_runs_that_ended_later_have_not_failed(tmp_path):
    fail(put(tmp_path, Config(SINE), np.ones(TASKS)))
    assert study.read(tmp_path).cells(SINE)[0].failures() == []


def test_packed_runs_give_the_same_report(tmp_path):
    for config in grid.expand(Config(SINE), {"lam": [0, 0.1], "seed": range(2)}):
        put(tmp_path / "runs", config, fake_study.draw(config, 1.0, -config.lam))
    for out in ("packed", "again"):
        (tmp_path / out).mkdir()
        assert archive.pack(tmp_path / "runs", tmp_path / out / "runs.zip") == 4
    files = [tmp_path / out / "runs.zip" for out in ("packed", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    pages = [
        report.write(tmp_path / name, tmp_path / "report" / name) for name in ("runs", "packed")
    ]
    assert pages[0].read_text() == pages[1].read_text()
