"""How fast is a meta-step? Our engines beside what else there is, in one process, in turns.

    make bench ARGS='--workloads "*" --json bench.json'
    make bench ARGS='--workloads "sinusoid*" --contenders "!compiled*"'

The first makes the full table, which takes hours; the bare command runs the sinusoids and one Conv-4. Every
contender first shows that its meta-gradient is that of our engine ``loop``, from the same weights on
the same tasks. A turn is as many steps as take 50 ms, or one. Peers that are not installed are left out;
in an environment of their own, this gets them:

    pip install -c constraints.txt -e . torchopt parallel-metalearn jax

and ``--learn2learn FOLDER`` takes the sources of one that does not install. First steps take longer where
TORCHINDUCTOR_CACHE_DIR is a new folder: then Inductor finds nothing that was compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from trlearner.experiments.bench import plot, record, session, stub, table
from trlearner.experiments.bench.workload import WORKLOADS
from trlearner.experiments.data.files import read_json

DEFAULT = ("sinusoid-*", "conv4-1step")


def main(arguments: Sequence[str] | None = None) -> dict[str, session.Found]:
    """Prints the table; returns what was found, by workload."""
    options = parse(arguments)
    if options.learn2learn:
        os.environ[stub.VARIABLE] = str(options.learn2learn)
    os.environ["NPROC"] = str(options.threads)  # to XLA's CPU client, the number of its threads
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    results: dict[str, session.Found] = {}
    try:
        for name in options.workloads:
            results[name] = session.run(
                WORKLOADS[name](), options.contenders, options.rounds, options.budget, clock
            )
            if options.json:  # after each, for the next may take long
                settings = {"rounds": options.rounds, "budget_seconds": options.budget}
                settings |= {"clock": "CPU time"} if options.cpu_time else {}
                found = record.record(results, settings)
                if options.add and options.json.exists():
                    found = record.added(json.loads(options.json.read_text()), found)
                options.json.write_text(json.dumps(found, indent=2) + "\n")
                plot.plot(found).savefig(options.json.with_suffix(".png"), dpi=150)
    finally:
        torch.set_num_threads(threads)
    print(f"\ntorch {torch.__version__}, {options.threads} thread(s), {record.cpu()}\n")
    parts = (
        table.table(results, options.rounds),
        table.floors(results),
        table.starts(results),
        table.conclusions(results),
        table.disturbance(results, options.threads),
    )
    print("\n".join(filter(None, parts)))
    return results


def _wrong(options: argparse.Namespace) -> str | None:
    """What cannot be, found before hours of timing."""
    file, patterns = options.json, [p.lstrip("!").partition("@")[0] for p in options.contenders]
    strange = [p for p in patterns if not any(fnmatchcase(n, p) for n in session.EVERYONE)]
    if not (1 <= options.rounds <= 10**6 and 1 <= options.threads <= 1024):
        return "--rounds and --threads must be at least 1, and at most 1000000 and 1024."
    if not 0 < options.budget <= 10**6:
        return f"--budget must be a number of seconds above 0, got {options.budget}."
    if strange:
        return f"--contenders must match one of {', '.join(session.EVERYONE)}, got {strange}."
    if options.learn2learn and not options.learn2learn.is_dir():
        return f"--learn2learn must be a folder, got {options.learn2learn}."
    if file and (file.is_dir() or not file.absolute().parent.is_dir()):
        return f"--json must be a file in a folder that is there, got {file}."
    if file and options.add and file.exists():
        try:
            known = {"machine", "versions", "settings", "workloads"} <= set(read_json(file))
        except ValueError as error:
            return f"--json {error}"
        if not known:
            return (
                f"--json {file} must be a file of the bench, so that --add can keep its workloads."
            )
    return None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `workloads` become names."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="trlearner.experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        default=DEFAULT,
        metavar="PATTERN",
        help=f"'*' is all; by default {' '.join(DEFAULT)}: {', '.join(WORKLOADS)}",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="'!x*' leaves out, '!x*@conv*' on some workloads; those that a workload leaves out run "
        f"where a pattern without '!' asks for them: {', '.join(session.EVERYONE)}",
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--budget", type=float, default=10, metavar="SECONDS", help="for one contender's turns"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="of this process; where others use the machine"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all of it here, and a plot beside it"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep what the file has of other workloads"
    )
    parser.add_argument("--learn2learn", type=Path, metavar="FOLDER", help="its sources")
    options = parser.parse_args(arguments)
    if wrong := _wrong(options):
        parser.error(wrong)
    patterns, options.workloads = options.workloads, []
    for name in WORKLOADS:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            options.workloads.append(name)
    if not options.workloads:
        parser.error(f"--workloads must match one of {', '.join(WORKLOADS)}, got {patterns}.")
    return options


if __name__ == "__main__":
    main()
