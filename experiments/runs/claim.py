"""One worker at a time for each run: a file in the run's folder says who is at it.

The file is ``claim.<n>``, and of several the highest counts. Nobody takes a claim away: who finds the last
one released, or its holder dead, creates the next number with O_EXCL, which only one can. The numbers
grow until there is a result, so that no claim is ever taken for an older one.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BEAT = 15.0
"""Seconds between a holder's signs of life."""

STALE = 600.0
"""A holder on another machine is given up after so many seconds without one."""

GRACE = 5.0
"""A claim that says nothing was being written when its holder died, if it is older than this."""


@dataclass(frozen=True)
class Claim:
    """The right to work in a folder."""

    path: Path

    def beat(self) -> bool:
        """Shows life; whether the claim still counts."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return False
        return _last(self.path.parent) == self.path

    def release(self) -> None:
        """Leaves unfinished work to others."""
        self.path.write_text(json.dumps({"released": True}))


def acquire(folder: Path, stale: float = STALE) -> Claim | None:
    """A claim, unless somebody else has one.

    Args:
        folder: Of the run; must exist.
        stale: As `STALE`.
    """
    before = _last(folder)
    if before is not None and not _abandoned(before, stale):
        return None
    path = folder / f"claim.{0 if before is None else _number(before) + 1}"
    try:
        with open(path, "x") as file:
            file.write(json.dumps(_holder()))
    except FileExistsError:
        return None
    # What was judged above may have changed before the new claim was there for others to see.
    if _last(folder) != path or (before is not None and not _abandoned(before, stale, gone=True)):
        path.unlink(missing_ok=True)
        return None
    for older in _claims(folder):
        if _number(older) < _number(path):
            older.unlink(missing_ok=True)
    return Claim(path)


def held(folder: Path, stale: float = STALE) -> bool:
    """Whether somebody is at it."""
    last = _last(folder)
    return last is not None and not _abandoned(last, stale)


def clear(folder: Path) -> None:
    """Removes all claims; only where there is a result, so that none will be needed."""
    for path in _claims(folder):
        path.unlink(missing_ok=True)


def _claims(folder: Path) -> list[Path]:
    return [path for path in folder.glob("claim.*") if path.suffix[1:].isdigit()]


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _last(folder: Path) -> Path | None:
    return max(_claims(folder), key=_number, default=None)


def _abandoned(path: Path, stale: float, gone: bool = False) -> bool:
    """Whether nobody stands behind a claim; `gone` is the answer where it is no longer there."""
    try:
        holder = json.loads(path.read_text())
        if holder.get("released"):
            return True
        if holder["place"] == _place():
            return not _alive(holder["pid"], holder["born"])
        return _age(path) > stale
    except ValueError:
        return _age(path) > GRACE
    except FileNotFoundError:
        return gone


def _holder() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "place": _place(), "pid": pid, "born": _born(pid)}


@cache
def _place() -> str:
    """Where process numbers mean the same: a host since its last start, or a container in it."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass  # no Linux
    return " ".join(parts)


def _alive(pid: int, born: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return _born(pid) == born


def _born(pid: int) -> str | None:
    """When a process started, lest a later one with its number be taken for it; none for zombies."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _age(path: Path) -> float:
    """Seconds since the last sign of life, by the file system's clock: those of machines differ."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
