"""``make test`` on every Python found, and on the lowest, the pinned and the newest torch.

    make matrix
    PYTHONS="python3.10 /opt/python3.13/bin/python" make matrix ARGS="--rows *3.13*"

Every Python runs with the torch of ``constraints.txt``. The one that runs this script also runs with the
lowest torch that ``pyproject.toml`` allows, and with the newest that pip finds. Each row has an environment
of its own in ``--envs``, which is kept: the next run only brings it up to date. The table is printed, and
written after every row to ``matrix.md`` in that folder. The exit status is 1 unless every row passed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
ASKS = "import sys; print('%d.%d' % sys.version_info[:2])"
LINE = re.compile(r"^torch==.*$", re.MULTILINE)
KEPT = 5
"""So many lines of what failed the table shows."""


@dataclass(frozen=True)
class Row:
    """An environment: a Python, and the torch that pip is asked for (nothing for the newest)."""

    version: str
    python: str
    torch: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"python{self.version}-torch{self.torch or '-newest'}"


@dataclass(frozen=True)
class Result:
    """What came of a row: the torch that was installed, a verdict, and what there is to read."""

    row: Row
    torch: str
    passed: bool
    verdict: str
    details: tuple[str, ...] = ()


def pythons(named: str | None) -> dict[str, str]:
    """Every Python that runs, by its version; `named` is a list as a shell would write it."""
    found: dict[str, str] = {}
    for python in shlex.split(named) if named else [f"python{version}" for version in VERSIONS]:
        path = shutil.which(python)
        told = path and subprocess.run([path, "-c", ASKS], capture_output=True, text=True)
        if told and told.returncode == 0:
            found.setdefault(told.stdout.strip(), path)
        elif named:
            raise SystemExit(
                f"PYTHONS names {python!r}, which does not run. Give a command or a path."
            )
    return found


def rows(found: dict[str, str], lowest: str, pinned: str) -> Iterator[Row]:
    """Every Python with the pinned torch, then one of them with the lowest and the newest."""
    yield from (Row(version, python, pinned) for version, python in found.items())
    here = "{}.{}".format(*sys.version_info)
    version = here if here in found else next(iter(found))
    yield from (Row(version, found[version], torch) for torch in (lowest, ""))


def lowest_torch(pyproject: str) -> str:
    """The lower bound of torch, as a version that there is: ``2.6`` is ``2.6.0``."""
    (bound,) = re.findall(r'"torch>=([0-9.]+)"', pyproject)
    return bound if bound.count(".") == 2 else f"{bound}.0"


def run(row: Row, envs: Path) -> Result:
    """Installs the row's environment where that is needed, and runs the tests in it."""
    folder = envs / row.name
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    pins = LINE.sub(
        f"torch=={row.torch}" if row.torch else "", (ROOT / "constraints.txt").read_text()
    )
    home = folder / "root"
    if not (constraints.exists() and constraints.read_text() == pins):
        constraints.write_text(pins)  # only then, for make goes by its time
    if not (home.exists() and home.read_text() == str(ROOT)):  # another checkout is installed there
        (folder / ".ready").unlink(missing_ok=True)
        home.write_text(str(ROOT))
    settings = [f"VENV={folder}", f"PYTHON={row.python}", f"CONSTRAINTS={constraints}"]
    installed = make([str(folder / ".ready"), *settings])
    if installed.returncode:
        return Result(row, row.torch, False, "not installed", tuple(complaints(installed.stdout)))
    asked = [folder / "bin" / "python", "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(asked, capture_output=True, text=True, cwd=envs)
    if torch.returncode:
        return Result(row, row.torch, False, "torch fails", tuple(complaints(torch.stderr)))
    tested = make(["test", *settings])
    (folder / "tests.log").write_text(tested.stdout)
    told = [
        line.strip("= ")
        for line in tested.stdout.splitlines()
        if re.search(r"\d+ (passed|fai)", line)
    ]
    verdict = re.sub(r" in [\d.]+s.*", "", told[-1]) if told else "no test ran"
    failed = [line for line in tested.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Result(row, torch.stdout.strip(), tested.returncode == 0, verdict, tuple(failed))


def make(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs make from the root, as if no make had started this script."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "VIRTUAL_ENV")
    own = {name: value for name, value in os.environ.items() if name not in outer}
    asked = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(
        asked, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def complaints(text: str) -> list[str]:
    """The lines that say why something could not be installed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for line in lines if re.match(r"(\w*Error|ERROR)\b", line)] or lines[-1:]


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, and below it what failed."""
    lines = ["| Python | torch | `make test` |", "|---|---|---|"]
    lines += [f"| {r.row.version} | {r.torch or 'newest'} | {r.verdict} |" for r in results]
    for result in results:
        if result.details:
            more = len(result.details) - KEPT
            lines += ["", f"Python {result.row.version}, torch {result.torch or 'newest'}:", ""]
            lines += [f"* `{line}`" for line in result.details[:KEPT]]
            lines += [f"* and {more} more"] if more > 0 else []
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the rows; returns the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", type=Path, default=ROOT / ".matrix", metavar="FOLDER")
    parser.add_argument(
        "--rows", nargs="+", default=["*"], metavar="PATTERN", help="by folder name"
    )
    options = parser.parse_args(arguments)
    envs, found = options.envs.resolve(), pythons(os.environ.get("PYTHONS"))
    if not found:
        parser.error(
            f"no Python of {', '.join(VERSIONS)} was found. Name some: PYTHONS='python3 ...'."
        )
    (pinned,) = re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    lowest = lowest_torch((ROOT / "pyproject.toml").read_text())
    results: list[Result] = []
    for row in rows(found, lowest, pinned):
        if not any(fnmatchcase(row.name, pattern) for pattern in options.rows):
            continue
        started = time.monotonic()
        results.append(run(row, envs))
        took = (time.monotonic() - started) / 60
        print(f"{row.name}: {results[-1].verdict} ({took:.0f} min)", file=sys.stderr, flush=True)
        (envs / "matrix.md").write_text(table(results))
    print(table(results))
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
