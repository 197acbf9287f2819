"""Runs that are kept: their numbers in one file, without weights and events. `study.read` finds them there.

    python -m trlearner.experiments.reporting.archive runs experiments/results/runs/runs.zip

packs all runs below ``runs`` that have ended. Equal runs give equal bytes.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path

from trlearner.experiments.data.files import replaced

KEPT = ("config.json", "metrics.jsonl", "result.json", "timing.json", "memory.json")


def pack(root: Path, file: Path) -> int:
    """Writes the archive; returns how many runs it holds."""
    folders = sorted(path.parent for path in root.rglob("result.json"))
    with replaced(file) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (folder / name for folder in folders for name in KEPT):
            if path.exists():  # without the time of writing, which differs between equal runs
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix())
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return len(folders)


def folders(file: Path) -> list[zipfile.Path]:
    """Those of the runs in an archive; they are read like any other, and nothing is unpacked."""
    root = zipfile.Path(zipfile.ZipFile(file))
    ends = [n for n in root.root.namelist() if n.endswith("/config.json")]
    return [root.joinpath(name).parent for name in ends]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trlearner.experiments.reporting.archive")
    parser.add_argument("runs", type=Path, help="a folder with runs")
    parser.add_argument("file", type=Path, help="e.g. runs.zip")
    told = parser.parse_args(arguments)
    print(f"{told.file} holds {pack(told.runs, told.file)} runs.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
