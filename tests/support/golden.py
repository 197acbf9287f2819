"""Fingerprints of what the demo and three short runs find: does a change of the code change a number?

    python -m tests.support.golden > before.txt     # on one commit
    python -m tests.support.golden > after.txt      # on the next, with the same processor and torch
    diff before.txt after.txt

Equal lines mean equal bytes. They are not committed: other processors round differently.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DEMO = ("-m", "trlearner.experiments.demo", "--seeds", "1", "--steps", "60")
RUN = ("-m", "trlearner.experiments.cli", "run")
SHORT = (
    "--validate-every",
    "10",
    "--validation-tasks",
    "10",
    "--test-tasks",
    "20",
    "--threads",
    "1",
)
RUNS = {
    "curves": (
        "regression/sinusoid",
        "--learner",
        "metasgd",
        "--steps",
        "40",
        "--sampler",
        "adaptive",
    ),
    "drugs": ("drugs/synthetic", "--learner", "anil", "--steps", "20"),
    "images": ("images/glyphs", "--learner", "maml", "--steps", "10", "--inner-steps", "1"),
}
TIMES = ("milliseconds", "seconds", "times", "timing")
"""Names of entries that differ between two runs of the same code."""


def fingerprints(folder: Path) -> dict[str, str]:
    """Of every file that holds results, by its name below the folder."""
    kept = [p for p in sorted(folder.rglob("*.json*")) if p.stem not in TIMES]
    return {
        str(p.relative_to(folder)): hashlib.sha256(_without_times(p).encode()).hexdigest()
        for p in kept
    }


def main() -> None:
    """Runs all of it and prints a line for each file."""
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        _python(*DEMO, "--out", str(out / "demo"))
        for name, arguments in RUNS.items():
            _python(*RUN, *arguments, *SHORT, "--out", str(out / name))
        for file, fingerprint in fingerprints(out).items():
            print(fingerprint, file)


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _without_times(file: Path) -> str:
    values = [json.loads(line) for line in _documents(file)]
    return json.dumps([_stripped(value) for value in values])


def _documents(file: Path) -> list[str]:
    text = file.read_text()
    return text.splitlines() if file.suffix == ".jsonl" else [text]


def _stripped(value: object) -> object:
    if isinstance(value, dict):
        return {k: _stripped(v) for k, v in value.items() if not any(t in k for t in TIMES)}
    return [_stripped(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
