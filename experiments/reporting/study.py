"""What lies in the folders of a sweep: runs by their settings, and how settings compare."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from trlearner.experiments.data import files
from trlearner.experiments.presets.config import Config
from trlearner.experiments.reporting import archive
from trlearner.experiments.reporting.difference import Difference, difference
from trlearner.experiments.reporting.interval import Interval, interval
from trlearner.experiments.runs.grid import RELATION, settings
from trlearner.experiments.runs.recall import COVERAGE
from trlearner.experiments.runs.recall import RESULT as RECALLED

Setting = Mapping[str, Any]
"""Values of what varies, e.g. ``{"learner": "maml", "lam": 0.1}``."""

PERCENT = ("accuracy",)
"""Metrics that are shares, and shown in percent."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One run.

    Attributes:
        config: Its own.
        folder: Its own.
        result: As `train.run` writes it, if it has ended.
        timing: Likewise.
        error: How its error text ends, if it has failed.
        memory: As `recall.run` writes it, if training tasks were remembered.
    """

    config: Config
    folder: files.Readable
    result: Mapping[str, Any] | None
    timing: Mapping[str, Any]
    error: str | None
    memory: Mapping[str, Any] | None = None

    @property
    def steps(self) -> Sequence[str]:
        """Numbers of inner steps that it was tested with; the main one is first."""
        found = sorted(self.result["test"], key=int) if self.result else []
        own = str(self.config.inner_steps)
        return sorted(found, key=lambda steps: steps != own)

    def tasks(self, split: str = "test") -> np.ndarray | None:
        """A number for every test task, with the main metric; not finite where training diverged."""
        found = (self.result or {}).get(split)
        if not found or self.result is None:
            return None
        values = found[self.steps[0]][self.result["metric"]]["tasks"]
        scale = 100.0 if self.result["metric"] in PERCENT else 1.0
        return scale * np.array([math.nan if v is None else v for v in values], dtype=float)

    def coverage(self, split: str = "test") -> float | None:
        """The share of labels in the memory's 95 % band; ``None`` for answers without a band."""
        found = (self.result or {}).get(split)
        if not found or COVERAGE not in found[self.steps[0]]:
            return None
        return found[self.steps[0]][COVERAGE]["summaries"].get("mean")


@dataclass(frozen=True, eq=False)
class Cell:
    """All seeds of a setting.

    Attributes:
        setting: Values of what varies.
        trials: By seed.
    """

    setting: Setting
    trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def learner(self) -> str:
        """That of all its runs."""
        return next(iter(self.trials.values())).config.learner

    @property
    def lam(self) -> float:
        """That of all its runs."""
        return next(iter(self.trials.values())).config.lam

    def scores(self, split: str = "test") -> dict[int, float]:
        """The mean over test tasks of each seed that has ended."""
        found = {seed: trial.tasks(split) for seed, trial in sorted(self.trials.items())}
        return {seed: float(tasks.mean()) for seed, tasks in found.items() if tasks is not None}

    def level(self, split: str = "test") -> Interval | None:
        """Mean over seeds, with Student's interval; ``None`` where nothing has ended."""
        values = list(self.scores(split).values())
        if not all(map(math.isfinite, values)):
            return Interval(math.nan, None)
        return interval(values) if values else None

    def against(self, base: Cell, split: str = "test") -> Difference | None:
        """What it is above `base`, on the seeds that both have."""
        ours = {seed: trial.tasks(split) for seed, trial in self.trials.items()}
        theirs = {seed: trial.tasks(split) for seed, trial in base.trials.items()}
        pairs = [
            (a, b)
            for seed, a in sorted(ours.items())
            if a is not None and (b := theirs.get(seed)) is not None
        ]
        if not pairs:
            return None
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            return difference(np.stack([a - b for a, b in pairs]))

    def with_memory(self) -> Cell | None:
        """The same setting, where the runs' memories answer; ``None`` where no run has one."""
        runs = {s: replace(t, result=t.memory) for s, t in self.trials.items() if t.memory}
        return Cell(self.setting, runs) if runs else None

    def coverage(self, split: str = "test") -> float | None:
        """The mean over seeds of the share of labels in the memory's 95 % band."""
        found = [trial.coverage(split) for trial in self.trials.values()]
        known = [one for one in found if one is not None]
        return statistics.fmean(known) if known else None

    def seconds(self) -> float | None:
        """Of a meta-step: the median over seeds."""
        found = [trial.timing.get("seconds_per_step") for trial in self.trials.values()]
        known = [one for one in found if one]
        return statistics.median(known) if known else None

    def failures(self) -> list[Trial]:
        """Runs that have failed."""
        return [trial for trial in self.trials.values() if trial.error and not trial.result]


class Study:
    """Runs, and what varies among them.

    Attributes:
        trials: All of them.
        axes: Names of the settings that vary within a problem, in the order of `Config`.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = trials
        values: dict[str, dict[str, set[str]]] = {}
        for trial in trials:
            for name, value in settings(trial.config).items():
                by_problem = values.setdefault(name, {})
                by_problem.setdefault(trial.config.problem, set()).add(json.dumps(value))
        self.axes = [
            name
            for name, by_problem in values.items()
            if name not in ("problem", "seed") and max(map(len, by_problem.values())) > 1
        ]

    @cached_property
    def problems(self) -> list[str]:
        """In alphabetic order."""
        return sorted({trial.config.problem for trial in self.trials})

    @cached_property
    def _cells(self) -> dict[str, dict[str, Cell]]:
        found: dict[str, dict[str, Cell]] = {problem: {} for problem in self.problems}
        for trial in self.trials:
            setting = {n: v for n, v in settings(trial.config).items() if n in self.axes}
            cell = found[trial.config.problem].setdefault(_key(setting), Cell(setting))
            cell.trials[trial.config.seed] = trial
        return found

    @cached_property
    def _same(self) -> dict[str, dict[str, Any]]:
        """What does not vary within a problem, but in another."""
        found = {p: {a: self.values(p, a) for a in self.axes} for p in self.problems}
        return {p: {a: v[0] for a, v in all_.items() if len(v) == 1} for p, all_ in found.items()}

    def cells(self, problem: str) -> list[Cell]:
        """Every setting that was begun."""
        found = self._cells[problem].values()
        return sorted(found, key=lambda cell: [order(cell.setting.get(n)) for n in self.axes])

    def cell(self, problem: str, setting: Setting) -> Cell | None:
        """That of a setting, which need not say what is the same in all of the problem's runs.

        Without the relation term (``lam=0``) its own settings mean nothing.
        """
        known = {**self._same[problem], **setting}
        return self._cells[problem].get(_key(self._plain(problem, known)))

    def baseline(self, problem: str, cell: Cell, base: Setting) -> Cell | None:
        """What a cell is compared with: the same, but for what `base` says."""
        return self.cell(problem, {**cell.setting, **base})

    def values(self, problem: str, axis: str) -> list[Any]:
        """What a problem's runs have on an axis, in order."""
        found = [one.setting[axis] for one in self.cells(problem) if axis in one.setting]
        return sorted({json.dumps(v): v for v in found}.values(), key=order)

    def has_memories(self, problem: str | None = None) -> bool:
        """Whether any run of a problem, or of all problems, was tested with a memory."""
        return any(t.memory and problem in (None, t.config.problem) for t in self.trials)

    def seeds(self, problem: str) -> int:
        """How many a complete cell has."""
        return len({t.config.seed for t in self.trials if t.config.problem == problem})

    def learner(self, problem: str) -> str:
        """Of a problem that has one only."""
        return self.cells(problem)[0].learner

    def metric(self, problem: str) -> tuple[str, str]:
        """The main one, and which way is better; unknown until a run has ended."""
        for trial in self.trials:
            if trial.config.problem == problem and trial.result:
                return trial.result["metric"], trial.result["better"]
        return "", ""

    def trivial(self, problem: str, split: str = "test") -> dict[str, float]:
        """What answers without learning score with the main metric; empty until a run has told."""
        for trial in self.trials:
            found = (trial.result or {}).get("trivial", {}).get(split)
            if trial.config.problem == problem and found and trial.result:
                metric = trial.result["metric"]
                scale = 100.0 if metric in PERCENT else 1.0
                return {
                    answer: scale * next(iter(metrics[metric].values()))
                    for answer, metrics in found.items()
                }
        return {}

    def _plain(self, problem: str, setting: Setting) -> Setting:
        lam = setting.get("lam", self._only(problem, "lam"))
        unused = RELATION if lam == 0 else ()
        return {name: value for name, value in setting.items() if name not in unused}

    def _only(self, problem: str, name: str) -> Any:
        return next(
            settings(t.config).get(name) for t in self.trials if t.config.problem == problem
        )


def read(root: Path) -> Study:
    """All runs below a folder.

    Raises:
        ValueError: There are none, or one of them is not as it was written.
    """
    folders = [path.parent for path in root.rglob("config.json")]
    folders += [folder for file in root.rglob("*.zip") for folder in archive.folders(file)]
    trials = [_trial(folder) for folder in sorted(folders, key=str)]
    if not trials:
        raise ValueError(
            f"{root} must hold the folders of runs (PROBLEM/HASH/config.json), but there are none. "
            "Is this the folder that `trlearner ablate --out` was given?"
        )
    return Study(trials)


def order(value: Any) -> tuple[Any, ...]:
    """A key to sort any values by: none first, then numbers, then words."""
    if value is None:
        return (0,)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (1, value) if number else (2, str(value))


def _trial(folder: files.Readable) -> Trial:
    error = folder / "error.txt"
    lines = error.read_text("utf-8", "replace").strip().splitlines() if error.exists() else []
    return Trial(
        _config(folder),
        folder,
        _result(folder / "result.json"),
        _timing(folder / "timing.json"),
        lines[-1] if lines else None,
        _result(folder / RECALLED),
    )


def _config(folder: files.Readable) -> Config:
    """That of a run, if it is the one that the folder is named after."""
    path = folder / "config.json"
    record = files.read_json(path)
    try:
        config = Config.read(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if folder.name != config.hash():
        raise ValueError(
            f"{path} must hold the settings that its folder {folder.name} is named after, got those of "
            f"{config.hash()}. It was edited, or is of another version: remove the folder."
        )
    return config


def _result(path: files.Readable) -> dict[str, Any] | None:
    if not path.exists():
        return None
    result = files.read_json(path)
    try:
        metric, better = result["metric"], result["better"]
        if not isinstance(metric, str) or better not in ("higher", "lower") or not result["test"]:
            raise ValueError
        for by_steps in (result["test"], result.get("shifted") or {}):
            for steps, metrics in by_steps.items():
                int(steps)
                [None if value is None else float(value) for value in metrics[metric]["tasks"]]
                for one in metrics.values():
                    dict(one["summaries"])
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
        raise ValueError(
            f"{path} must be a result as `trlearner run` writes it. Remove it, and run this again."
        ) from None
    return result


def _timing(path: files.Readable) -> dict[str, Any]:
    timing = files.read_json(path) if path.exists() else {}
    seconds = timing.get("seconds_per_step")
    if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
        raise ValueError(f"{path}: seconds_per_step must be a number, got {seconds!r:.50}.")
    return timing


def _key(setting: Setting) -> str:
    """The same for 0 and 0.0."""
    whole = {n: float(v) if type(v) is int else v for n, v in setting.items()}
    return json.dumps(whole, sort_keys=True)
