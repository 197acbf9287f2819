"""What a sweep has found: tables, plots and the numbers themselves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from trlearner.experiments.data.files import replaced
from trlearner.experiments.data.setting import given
from trlearner.experiments.presets.config import Config
from trlearner.experiments.reporting import curves, study, tables, trade
from trlearner.experiments.reporting.study import Cell, Study
from trlearner.experiments.reporting.tables import Table
from trlearner.experiments.reporting.wording import metric_name, name

HOW_TO_READ = """\
* ± is half of a 95 % confidence interval. A mean's is Student's t over seeds, on the fixed test tasks.
* Differences are paired: same seeds, same test tasks. Their intervals cover other seeds and other tasks
  (two-way analysis of variance; `cells.csv` has a bootstrap beside it). `*` marks those that exclude zero,
  each for itself: of twenty comparisons without any effect, about one gets a star.
* "Better" and "worse" mean a star in that direction; a run that diverged against one that did not is worse.
* — is missing, † has failed runs, (2/5) has so many of the seeds. One seed gives no interval, and no verdict.
"""

OF_MEMORIES = """\
* "Alone" is the learner at λ = 0, "term" with the relation term; with a memory, remembered training tasks
  contribute to the answers (`--memory`). A sound 95 % band holds 95 % of the test labels.
"""


def write(root: Path, out: Path, *, baseline: Sequence[str] = ("lam=0",)) -> Path:
    """Reports on all runs below a folder; returns the page to read first.

    Args:
        root: Where runs lie, finished or not.
        out: Where ``report.md``, ``report.tex``, ``cells.csv``, ``runs.csv`` and plots go, and
            ``memories.csv`` where there are any.
        baseline: What settings are compared with, e.g. ``["lam=0"]`` or ``["encoder=input"]``: each
            with the one that is like it in everything else.

    Raises:
        ValueError: There are no runs, or the baseline is no setting.
    """
    base, found = parse(baseline), study.read(root)
    out.mkdir(parents=True, exist_ok=True)
    plots = _plots(found, base, out)
    parts = [(problem, _tables(found, problem, base)) for problem in found.problems]
    ranking = [tables.wins(found, base, split) for split in _splits(found)]
    page = out / "report.md"
    _text(page, _markdown(found, parts, ranking, plots))
    everything = [*ranking, *(table for _, several in parts for table in several)]
    tex = "\n\n".join(table.latex() for table in everything)
    _text(out / "report.tex", f"% \\usepackage{{booktabs}}\n{tex}\n")
    _csv(out / "cells.csv", _cell_records(found, base))
    _csv(out / "runs.csv", _run_records(found))
    if found.has_memories():
        _csv(out / "memories.csv", _memory_records(found))
    return page


def parse(baseline: Sequence[str]) -> dict[str, Any]:
    """Settings as a command line has them.

    Raises:
        ValueError: One is not ``name=value``, or names no setting.

    Example:
        >>> parse(["lam=0", "encoder=input"])
        {'lam': 0, 'encoder': 'input'}
    """
    found: dict[str, Any] = {}
    known = [one.name for one in fields(Config)]
    for text in baseline:
        key, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"baseline must be NAME=VALUE, e.g. lam=0, got {given(text)}.")
        if key not in known and not key.startswith("options."):
            raise ValueError(
                f"baseline must name a setting ({', '.join(known)}, options.NAME), got {given(key)}."
            )
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


def _splits(found: Study) -> list[str]:
    """Those that any run was tested on."""
    there = {s for t in found.trials if t.result for s in ("test", "shifted") if t.result.get(s)}
    return [split for split in ("test", "shifted") if split in there] or ["test"]


def _comparable(
    found: Study, base: Mapping[str, Any], problems: Sequence[str] | None = None
) -> bool:
    """Whether any setting has a baseline other than itself."""
    return any(
        found.baseline(problem, cell, base) not in (None, cell)
        for problem in problems or found.problems
        for cell in found.cells(problem)
    )


def _tables(found: Study, problem: str, base: Mapping[str, Any]) -> list[Table]:
    """All of a problem; no differences where there is nothing to compare with."""
    several = []
    cells = found.cells(problem)
    for split in _splits(found):
        if all(cell.level(split) is None for cell in cells) and split != "test":
            continue
        several.append(tables.results(found, problem, split))
        if _comparable(found, base, [problem]):
            several.append(tables.differences(found, problem, base, split))
        if found.has_memories(problem):
            several.append(tables.memories(found, problem, split))
    if any(cell.seconds() for cell in cells):
        several.append(tables.costs(found, problem))
    return several


def _plots(found: Study, base: Mapping[str, Any], out: Path) -> list[str]:
    """Draws and saves them; their names."""
    figures: dict[str, Figure] = {}
    ended = any(trial.result for trial in found.trials)
    for split in _splits(found) if ended else ():
        ending = "" if split == "test" else f"-{split}"
        for axis in found.axes:
            if axis != "learner":
                title = _title(found, axis)
                figures[f"{title}{ending}"] = curves.by_axis(found, axis, split)
                if _comparable(found, base):
                    figures[f"{title}-difference{ending}"] = curves.by_axis(
                        found, axis, split, base
                    )
        if any(trial.timing for trial in found.trials):
            figures[f"cost{ending}"] = trade.trade(found, split)
    # The same numbers give the same files.
    with rc_context({"svg.hashsalt": "trlearner"}):
        for title, figure in figures.items():
            with replaced(out / f"{title}.png") as file:
                figure.savefig(file, format="png", dpi=130)
            with replaced(out / f"{title}.svg") as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
    return list(figures)


def _title(found: Study, axis: str) -> str:
    """The name of a plot's file: our own word, and never one that a run's config made up."""
    if not axis.startswith("options."):  # a field of `Config`
        return axis.replace("_", "-")
    options = [one for one in found.axes if one.startswith("options.")]
    return f"option-{options.index(axis) + 1}"


def _markdown(
    found: Study,
    parts: Sequence[tuple[str, Sequence[Table]]],
    ranking: Sequence[Table],
    plots: Sequence[str],
) -> str:
    ended = sum(trial.result is not None for trial in found.trials)
    varying = ", ".join(name(axis) for axis in found.axes) or "nothing"
    lines = ["# Report", "", f"{ended} of {len(found.trials)} runs have ended. Varying: {varying}."]
    lines += ["", HOW_TO_READ + OF_MEMORIES * found.has_memories()]
    for table in ranking:
        lines += [f"**{table.title}**", "", table.markdown(), ""]
    for title in plots:
        lines += [f"![{title}]({title}.png)", ""]
    for problem, several in parts:
        lines += [f"## {problem}", ""]
        for table in several:
            lines += [f"**{table.title.removeprefix(problem + ': ')}**", "", table.markdown(), ""]
    failed = [trial for trial in found.trials if trial.error and not trial.result]
    if failed:
        lines += ["## Failed", ""]
        lines += [f"* `{trial.folder / 'error.txt'}`: {trial.error}" for trial in failed]
        lines += [""]
    return "\n".join(lines)


def _cell_records(found: Study, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every setting: its level, and its difference from the baseline."""
    records = []
    for problem in found.problems:
        for cell in found.cells(problem):
            other = found.baseline(problem, cell, base)
            for split in _splits(found):
                records.append(_cell_record(found, problem, cell, other, split))
    return records


def _memory_records(found: Study) -> list[dict[str, Any]]:
    """Of every arm of the memories' tables: its level, its difference from the learner alone, its band."""
    return [
        {
            "arm": arm.name,
            **_cell_record(found, problem, arm.cell, arm.alone, split),
            "coverage": arm.cell.coverage(split),
        }
        for problem in found.problems
        if found.has_memories(problem)
        for split in _splits(found)
        for arm in tables.arms_of(found, problem)
    ]


def _cell_record(
    found: Study, problem: str, cell: Cell, other: Cell | None, split: str
) -> dict[str, Any]:
    level = cell.level(split)
    gap = cell.against(other, split) if other and other is not cell else None
    metric, better = found.metric(problem)
    return {
        "problem": problem,
        **{axis: cell.setting.get(axis) for axis in found.axes},
        "split": split,
        "metric": metric_name(metric),
        "better": better,
        "seeds": len(cell.scores(split)),
        "failed": len(cell.failures()),
        "mean": level and level.mean,
        "half_width": level and level.half_width,
        "difference": gap and gap.mean,
        "difference_half_width": gap and gap.half_width,
        "bootstrap_low": gap and gap.low,
        "bootstrap_high": gap and gap.high,
        "pairs": gap and gap.seeds,
        "seconds_per_step": cell.seconds(),
    }


def _run_records(found: Study) -> list[dict[str, Any]]:
    """Of every run: all metrics, splits and numbers of inner steps."""
    records = []
    for trial in found.trials:
        result = trial.result or {}
        about = {
            "problem": trial.config.problem,
            **{axis: study.settings(trial.config).get(axis) for axis in found.axes},
            "seed": trial.config.seed,
            "hash": trial.folder.name,
            "status": "done" if result else "failed" if trial.error else "unfinished",
            "best_step": result.get("best_step"),
            **trial.timing,
        }
        numbers = [
            {"split": split, "inner_steps_at_test": steps, "metric": metric, **one["summaries"]}
            for split in ("test", "shifted")
            for steps, metrics in (result.get(split) or {}).items()
            for metric, one in metrics.items()
        ]
        records += [{**about, **one} for one in numbers or [{}]]
    return records


def _text(path: Path, text: str) -> None:
    """Takes the place of a file; a link is replaced, not followed."""
    with replaced(path) as beside:
        beside.write_text(text, "utf-8")


def _csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(key for record in records for key in record)
    with replaced(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
