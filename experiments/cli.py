"""The command ``trlearner``.

    trlearner run PROBLEM       train one learner and test it
    trlearner ablate PROBLEM    train many that differ in some settings; goes on where it was stopped
                                (--memory, of both: test with remembered training tasks, too)
    trlearner report FOLDER     tables and plots of what was trained
    trlearner data [PROBLEM]    which problems there are; or get one ready and look at a batch
    trlearner bench             time our engines and installed peers

Every command has its own --help. `trlearner run PROBLEM --help` shows that problem's own defaults.
"""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
import torch
from trlearner.experiments.data.progress import Progress
from trlearner.experiments.data.setting import Range, check, given
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import config_of, presets
from trlearner.experiments.runs import grid, recall, sweep, train, worker
from trlearner.experiments.runs.build import make_problem
from trlearner.experiments.runs.where import CORES, Where, check_out
from trlearner.experiments.runs.words import parse


def run(arguments: Sequence[str]) -> int:
    """Trains one learner on a problem and tests it."""
    problem, rest = _problem("run", arguments)
    [config], where = _parse(problem, rest)
    folder = where.out / config.problem / config.hash()
    torch.set_num_threads(where.threads)
    print(f"{config.problem} {config.hash()} -> {folder}", flush=True)
    train_and_test = recall.run if where.memory else train.run
    try:
        with Progress(1, config.steps) as progress:
            result = train_and_test(
                config,
                folder,
                data_dir=where.data_dir,
                device=where.device,
                engine=where.engine,
                watch=lambda step, note: progress.advance(0, step, note),
            )
    except KeyboardInterrupt:
        again = shlex.join(["trlearner", "run", *arguments])
        print(f"\nStopped; nothing is lost. Go on with:\n  {again}")
        return 130
    for split in ("test", "shifted"):
        for line in _lines(result, split):
            print(line)
    print(f"{result['best_step']} of {result['steps']} steps gave the best validation.")
    if where.memory:
        print(_remembered(result["memory"]))
    print(f"Everything is in {folder};  tensorboard --logdir {where.out}")
    return 0


@dataclass(frozen=True)
class Sweep(Where, sweep.How):
    """Where and how a sweep runs; `Where` and `sweep.How` say what is what."""

    def check(self) -> None:
        """As `Where.check`."""
        super().check()
        check("workers", self.workers, int | None, CORES)
        check("stale_minutes", self.stale_minutes, float, Range(0, 10**6, without=0))


def ablate(arguments: Sequence[str]) -> int:
    """Trains every combination of the settings that are listed; does only what is missing."""
    problem, rest = _problem("ablate", arguments)
    configs, where = _parse(problem, rest, Sweep)
    how = sweep.How(**{one.name: getattr(where, one.name) for one in fields(sweep.How)})
    if where.memory:  # tasks with too few samples are found here, not in every run
        recall.training_tasks(configs[0], recall.memory_of(problem), where.data_dir, "cpu")
    train.rehearse(configs, where.data_dir, where.engine)
    run, result = (recall.run, recall.RESULT) if where.memory else (train.run, worker.RESULT)
    run = partial(run, data_dir=where.data_dir, device=where.device, engine=where.engine)
    again = ["trlearner", "ablate", *arguments]
    return sweep.ablate(configs, run, where.out, how, again, result)


def data(arguments: Sequence[str]) -> int:
    """Lists the problems, or makes one ready and shows a batch of it."""
    if not arguments:
        for name, preset in presets().items():
            print(f"{name:28} {preset.source}")
        print("\ntrlearner data PROBLEM makes it ready and shows a batch.")
        return 0
    problem, rest = _problem("data", arguments)
    [config], where = _parse(problem, rest)
    source = make_problem(config, where.data_dir, where.device).source
    for split in source.splits:
        generator = torch.Generator(where.device).manual_seed(0)
        batch = source.sample(split, 4, generator)  # type: ignore[arg-type]
        print(f"{split:10} {batch.support} {batch.query}\n{'':10} {batch.ids}")
    return 0


@dataclass(frozen=True)
class Reported:
    """Tables and plots of what was trained.

    Attributes:
        root: Where the runs lie, e.g. runs or runs/regression.
        out: Where report.md and the rest go; ROOT/report by default.
        baseline: What settings are compared with, each with the one that is like it in all else.
    """

    root: Path
    out: Path | None = None
    baseline: tuple[str, ...] = ("lam=0",)


def report(arguments: Sequence[str]) -> int:
    """Writes tables and plots of the runs below a folder."""
    import tyro
    from trlearner.experiments.reporting.report import write

    asked = parse(
        Reported, arguments, "trlearner report", config=(tyro.conf.PositionalRequiredArgs,)
    )
    out = asked.out or asked.root / "report"
    check_out(out)
    page = write(asked.root, out, baseline=asked.baseline)
    print(page.read_text())
    print(f"All of it is in {page.parent}.")
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Times our engines and installed peers."""
    from trlearner.experiments.bench.__main__ import main

    main(arguments)
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "ablate": ablate,
    "report": report,
    "data": data,
    "bench": bench,
}


OF_A_PROBLEM = {
    name: f"trlearner {name} PROBLEM {more}\n\nProblems:\n  {{problems}}\n\n"
    f"trlearner {name} regression/sinusoid --help shows every setting, with that problem's defaults."
    for name, more in (
        ("run", "[--SETTING VALUE ...] [--memory]"),
        ("ablate", "[--SETTING VALUE VALUE ... ...] [--seeds N] [--memory]"),
        ("data", "[--data-dir FOLDER]"),
    )
}
"""Help without a problem, whose preset has the defaults."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns what a shell is told."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.strip() if __doc__ else "")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        text = f"{given(name)} is no command; there are {', '.join(COMMANDS)}."
        print(f"trlearner: {text}", file=sys.stderr)
        return 2
    if name in OF_A_PROBLEM and rest[:1] in (["-h"], ["--help"]):
        print(OF_A_PROBLEM[name].format(problems="\n  ".join(presets())))
        return 0
    try:
        return COMMANDS[name](rest)
    except KeyboardInterrupt:
        print("\ntrlearner: stopped by Ctrl-C.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"trlearner: {_install(error)}", file=sys.stderr)
    except (ValueError, OSError) as error:  # also `MissingData`
        print(f"trlearner: {' '.join(str(error).split())}", file=sys.stderr)
    except RuntimeError as error:
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        text = "there is not enough memory for so many tasks, shots, queries or heads. Lower them."
        print(f"trlearner: {text}", file=sys.stderr)
    return 2


EXTRAS = {"tyro": "experiments", "matplotlib": "experiments", "scipy": "experiments", "ray": "ray"}
"""What a command may need beside the library itself, and which extra has it."""


def _install(error: ModuleNotFoundError) -> str:
    """What is missing and how to get it."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return str(error)
    return f"{name} is not installed. Install it with pip install 'trlearner[{EXTRAS[name]}]'."


def _numbers(summaries: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in summaries.items())


def _lines(result: Mapping[str, Any], split: str) -> Iterator[str]:
    """What the learner, the memory and trivial answers score on a split."""
    for who, by_steps in (("inner steps", result), ("with memory", result.get("memory", {}))):
        for steps, metrics in by_steps.get(split, {}).items():
            scores = {name: found for name, found in metrics.items() if name != recall.COVERAGE}
            for name, found in scores.items():
                yield f"{split:8} {steps:>2} {who}  {name}: {_numbers(found['summaries'])}"
            if recall.COVERAGE in metrics:
                covered = 100 * metrics[recall.COVERAGE]["summaries"]["mean"]
                yield f"{split:8} {steps:>2} {who}  {covered:.1f} % of the labels lie in the 95 % band"
    for answer, metrics in result.get("trivial", {}).get(split, {}).items():
        for name, summaries in metrics.items():
            yield f"{split:8} by {answer:12}  {name}: {_numbers(summaries)}"


def _remembered(memory: Mapping[str, Any]) -> str:
    """What a memory holds, and the settings that were tuned."""
    left_out = sum(memory["left_out"].values())
    held = f"{memory['tasks']} training tasks by at most {memory['samples']} samples each"
    held += f" ({left_out} more would ruin answers)" if left_out else ""
    if not memory["share"]:
        return f"The memory of {held} does not help for sure: answers are the learner's own."
    noise = np.mean(memory["noise"])
    return (
        f"The memory holds {held}: share {memory['share']:g}, {memory['neighbours']} neighbours, "
        f"spread {memory['spread']:g}, noise {noise:.3g}."
    )


def _problem(command: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The problem is named first, for its preset gives the defaults of all that follows."""
    names = presets()
    if not arguments or arguments[0] not in names:
        wrong = f"{given(arguments[0])} is none of" if arguments else "name one of"
        raise ValueError(
            f"{wrong} the problems: {', '.join(names)}. E.g. trlearner {command} regression/sinusoid"
        )
    return arguments[0], list(arguments[1:])


SINGLE = ("options", "test_steps")
"""Settings that are lists themselves; a sweep has one of each."""


def _parse(
    problem: str, arguments: Sequence[str], places: type[Where] = Where
) -> tuple[list[Config], Any]:
    """The configs that a command line asks for: one, or every combination of what it lists."""
    import tyro

    command, many = ("ablate", True) if places is Sweep else ("run", False)
    usual, hints, source = config_of(problem), get_type_hints(Config), presets()[problem].source
    columns: list[tuple[str, Any, Any]] = []
    for name in (one.name for one in fields(Config) if one.name != "problem"):
        kind, value = hints[name], getattr(usual, name)
        if name == "options":
            kind, value = tuple[str, ...], tuple(f"{k}={v}" for k, v in value.items())
        elif many and name == "seed":
            name, kind, value = "seeds", int, 5
        elif many and name not in SINGLE:
            kind, value = tuple[kind, ...], (value,)
        columns.append((name, kind, field(default=value)))
    where = Annotated[places, tyro.conf.arg(name="")]
    columns.append(("where", where, field(default_factory=places)))
    asked = make_dataclass("Asked", columns)
    described = Config.__doc__ or ""
    asked.__doc__ = described.replace(
        " seed: Of", " seeds: How many, from 0: of" if many else " seed: Of"
    )
    told = parse(asked, arguments, f"trlearner {command} {problem}", description=source)
    told.where.check()
    if told.where.memory:
        recall.memory_of(problem)  # an error here comes before anything is made
    values = {name: getattr(told, name) for name, *_ in columns[:-1]}
    values["options"] = dict(_option(text) for text in values["options"])
    if not many:
        return [Config(problem=problem, **values)], told.where
    fixed = {name: values.pop(name) for name in SINGLE}
    check("seeds", values["seeds"], int, Range(1, 10_000))
    values["seed"] = tuple(range(values.pop("seeds")))
    return grid.expand(replace(usual, **fixed), values), told.where


def _option(text: str) -> tuple[str, Any]:
    """``name=value``, where the value is read as Python has it, or else as it stands."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"options must be name=value, got {given(text)}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # too long or deep for Python
        return name, value


if __name__ == "__main__":
    raise SystemExit(main())
