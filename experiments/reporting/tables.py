"""Tables of a study, as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trlearner.experiments.reporting.study import Cell, Setting, Study, order
from trlearner.experiments.reporting.wording import MISSING, metric_name, name, number

LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "λ": r"$\lambda$",
    "²": r"$^2$",
    "—": "---",
    "†": r"\dag",
    **{one: rf"\{one}" for one in "%&_#${}"},
}


@dataclass(frozen=True)
class Table:
    """Words in rows and columns.

    Attributes:
        title: What it shows.
        header: Names of the columns.
        rows: As long as the header each.
        names: So many columns at the left name the row.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int

    def markdown(self) -> str:
        """For reading as it stands, too: columns are aligned."""
        lines = [[one.replace("|", "\\|") for one in line] for line in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        rules = [
            "-" * width if i < self.names else "-" * (width - 1) + ":"
            for i, width in enumerate(widths)
        ]
        padded = [
            [
                _pad(one, w, i < self.names)
                for i, (one, w) in enumerate(zip(line, widths, strict=True))
            ]
            for line in lines
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rules, *padded[1:]))

    def latex(self) -> str:
        """With booktabs."""
        columns = "l" * self.names + "r" * (len(self.header) - self.names)
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (self.header, *self.rows)]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(self.title)}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


def results(study: Study, problem: str, split: str) -> Table:
    """Means over seeds with their intervals."""
    metric, better = study.metric(problem)

    def text(cell: Cell | None) -> str:
        return _level(cell, study.seeds(problem), split)

    known = study.trivial(problem, split)
    without = ", ".join(f"{answer} {number(value)}" for answer, value in known.items())
    title = f"{problem}: {split} {metric_name(metric)}, {better} is better"
    title += f"; without learning: {without}" if without else ""
    return _pivot(study, problem, title, text)


def differences(study: Study, problem: str, base: Setting, split: str) -> Table:
    """Paired differences from the baseline."""
    metric, better = study.metric(problem)

    def text(cell: Cell | None) -> str:
        return _difference(study, problem, cell, base, split)

    given = ", ".join(f"{name(k)} = {name(v)}" for k, v in base.items())
    title = f"{problem}: {split} {metric_name(metric)} minus that with {given}, {better} is better"
    return _pivot(study, problem, title, text)


def memories(study: Study, problem: str, split: str) -> Table:
    """The learner alone, with the term, with a memory, and with both: a row for each."""
    metric, better = study.metric(problem)
    axes, column = layout(study, problem)
    axes = [*axes, *([column] if column else [])]
    rows = []
    for arm in arms_of(study, problem):
        named = {"learner": arm.cell.learner, **arm.cell.setting}
        labels = [name(named[a]) if a in named else MISSING for a in axes]
        level = _level(arm.cell, study.seeds(problem), split)
        covered = arm.cell.coverage(split)
        gap = _minus(study, problem, arm.cell, arm.alone, split)
        band = MISSING if covered is None else f"{100 * covered:.1f} %"
        rows.append([*labels, arm.name, level, gap, band])
    title = (
        f"{problem}: {split} {metric_name(metric)} with and without a memory, {better} is better"
    )
    header = [*map(name, axes), "arm", metric_name(metric), "minus alone", "in the 95 % band"]
    return Table(title, header, rows, names=len(axes) + 1)


@dataclass(frozen=True)
class Arm:
    """One way to answer.

    Attributes:
        name: Alone, with the term, with a memory, or with both.
        cell: Its runs.
        alone: Those of the learner alone, if there are any.
    """

    name: str
    cell: Cell
    alone: Cell | None


def arms_of(study: Study, problem: str) -> Iterator[Arm]:
    """Every setting of a problem, without and with its memory."""
    for cell in study.cells(problem):
        alone = study.baseline(problem, cell, {"lam": 0}) if cell.lam else cell
        plain, recalled = ("alone", "memory") if not cell.lam else ("term", "term and memory")
        yield Arm(plain, cell, alone)
        if (found := cell.with_memory()) is not None:
            yield Arm(recalled, found, alone)


def costs(study: Study, problem: str) -> Table:
    """Milliseconds of a meta-step."""

    def text(cell: Cell | None) -> str:
        seconds = cell.seconds() if cell else None
        return MISSING if seconds is None else number(1000 * seconds)

    return _pivot(study, problem, f"{problem}: milliseconds of a meta-step, median", text)


def wins(study: Study, base: Setting, split: str) -> Table:
    """Of each learner's settings: how many beat, equal and lose to the baseline."""
    learners = sorted({trial.config.learner for trial in study.trials})
    rows = []
    for learner in learners:
        counts = [_count(study, problem, learner, base, split) for problem in study.problems]
        rows.append([name(learner), *counts])
    title = f"Settings better / not distinguishable / worse than the baseline, {split}"
    return Table(title, ["learner", *study.problems], rows, names=1)


def verdict(study: Study, problem: str, cell: Cell, base: Setting, split: str) -> int | None:
    """1 better than the baseline, -1 worse, 0 neither; ``None`` where that cannot be said."""
    other = study.baseline(problem, cell, base)
    found = cell.against(other, split) if other else None
    if other is None or other is cell or found is None:
        return None
    if not math.isfinite(found.mean):
        ours, theirs = (_finite(one.scores(split)) for one in (cell, other))
        return None if ours == theirs else ours - theirs
    if found.half_width is None:
        return None
    return found.sign() * (1 if study.metric(problem)[1] == "higher" else -1)


def layout(study: Study, problem: str) -> tuple[list[str], str | None]:
    """Which axes name the rows, and which one the columns: λ, or else the longest."""
    varying = [axis for axis in study.axes if len(study.values(problem, axis)) > 1]
    others = [axis for axis in varying if axis != "learner"]
    if not others:
        return ["learner"], None
    column = "lam" if "lam" in others else max(others, key=lambda a: len(study.values(problem, a)))
    rows = [axis for axis in varying if axis != column]
    return rows or ["learner"], column


def rows_of(study: Study, problem: str, axes: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination on these axes; one that fits into others (``lam=0``) is not a row itself."""
    found = [{a: one.setting[a] for a in axes if a in one.setting} for one in study.cells(problem)]
    distinct = sorted(
        {str(one): one for one in found}.values(), key=lambda one: [order(one.get(a)) for a in axes]
    )
    return [one for one in distinct if not any(one.items() < other.items() for other in distinct)]


def _pivot(study: Study, problem: str, title: str, text: Callable[[Cell | None], str]) -> Table:
    axes, column = layout(study, problem)
    values = study.values(problem, column) if column else [None]
    head = [f"{name(column)} = {name(v)}" for v in values] if column else ["all"]
    rows = []
    for row in rows_of(study, problem, axes):
        settings = [{**row, column: v} if column else row for v in values]
        cells = [study.cell(problem, one) for one in settings]
        # Where learners do not vary, the only one is named by what every run has.
        named = row or {"learner": study.learner(problem)}
        labels = [name(named[a]) if a in named else MISSING for a in axes]
        rows.append([*labels, *map(text, cells)])
    return Table(title, [*map(name, axes), *head], rows, names=len(axes))


def _level(cell: Cell | None, seeds: int, split: str) -> str:
    found = cell.level(split) if cell else None
    failed = " †" if cell and cell.failures() else ""
    if cell is None or found is None:
        return f"failed{failed}" if failed else MISSING
    ended = len(cell.scores(split))
    part = f" ({ended}/{seeds})" if ended < seeds else ""
    broken = sum(not math.isfinite(score) for score in cell.scores(split).values())
    if broken:
        return f"{broken} of {ended} diverged{failed}"
    return number(found.mean, found.half_width) + part + failed


def _difference(study: Study, problem: str, cell: Cell | None, base: Setting, split: str) -> str:
    other = study.baseline(problem, cell, base) if cell else None
    return _minus(study, problem, cell, other, split)


def _minus(study: Study, problem: str, cell: Cell | None, other: Cell | None, split: str) -> str:
    """The paired difference of two cells."""
    if cell is None or other is None:
        return MISSING
    if other is cell:
        return "baseline"
    found = cell.against(other, split)
    if found is None:
        return MISSING
    part = f" ({found.seeds}/{study.seeds(problem)})" if found.seeds < study.seeds(problem) else ""
    return number(found.mean, found.half_width, sign=True) + ("*" if found.sign() else "") + part


def _count(study: Study, problem: str, learner: str, base: Setting, split: str) -> str:
    compared = []
    for cell in study.cells(problem):
        if cell.learner == learner and study.baseline(problem, cell, base) is not cell:
            compared.append(verdict(study, problem, cell, base, split))
    if not compared:
        return MISSING
    text = " / ".join(str(compared.count(which)) for which in (1, 0, -1))
    unknown = compared.count(None)
    return f"{text} ({unknown} not compared)" if unknown else text


def _finite(scores: dict[int, float]) -> int:
    return int(all(map(math.isfinite, scores.values())))


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _latex(text: str) -> str:
    return "".join(LATEX.get(one, one) for one in text)
