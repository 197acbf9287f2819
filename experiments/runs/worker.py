"""One run of a sweep, in a process of its own: nothing of a run can leak into the next."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from trlearner.experiments.data import files
from trlearner.experiments.data.files import replaced
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import claim

Run = Callable[[Config, Path], Any]
"""Trains a config in a folder. It ends with a file (`RESULT`), and goes on from where it was stopped."""

RESULT = "result.json"
"""The file that a run ends with, unless it is told another."""

Outcome = Literal["done", "busy", "failed", "stopped", "lost"]
"""``busy``: somebody else is at it. ``lost``: the process died without a word."""

CODES: dict[Outcome, int] = {"done": 0, "failed": 70, "busy": 75, "stopped": 130}
"""How a worker process tells; every other code is ``lost``, also that of an uncaught exception."""


def finished(folder: Path, result: str = RESULT) -> bool:
    """Whether there is a result."""
    return (folder / result).exists()


def attempt(
    config: Config, folder: Path, run: Run, stale: float = claim.STALE, result: str = RESULT
) -> Outcome:
    """Does a run, unless it is done or somebody else is at it.

    Args:
        config: Of the run.
        folder: Its own.
        run: Does it.
        stale: As `claim.STALE`.
        result: The file that the run ends with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = claim.acquire(folder, stale)
    if mine is None:
        return "busy"
    with _alive(mine):
        outcome = _run(config, folder, run, result)
    if finished(folder, result):
        tidy(folder)
    else:
        mine.release()
    return outcome


def tidy(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    claim.clear(folder)
    for name in ("checkpoint.pt", "error.txt"):
        (folder / name).unlink(missing_ok=True)


def fail(folder: Path, text: str) -> None:
    """Says why a run failed."""
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / "error.txt") as beside:
        beside.write_text(text)


def _run(config: Config, folder: Path, run: Run, result: str) -> Outcome:
    if finished(folder, result):
        return "done"
    (folder / "error.txt").unlink(missing_ok=True)
    # Here already, so that a report knows what was planned, should the run fail at once.
    files.write_json(folder / "config.json", config.record())
    try:
        run(config, folder)
    except KeyboardInterrupt:
        return "stopped"
    except BaseException:
        # SystemExit as well: whatever ends a run early is to be found in its folder.
        fail(folder, traceback.format_exc())
        return "failed"
    if not finished(folder, result):
        fail(folder, f"{run} ended without a {result} in {folder}.\n")
        return "failed"
    return "done"


@contextmanager
def _alive(mine: claim.Claim) -> Iterator[None]:
    """Shows life while a run is at work."""
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(mine, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(mine: claim.Claim, over: threading.Event) -> None:
    while not over.wait(claim.BEAT):
        try:
            still = mine.beat()
        except OSError:
            continue  # a shared folder may be out of reach for a while
        if not still:
            # We seemed dead (a laptop that slept?), and somebody else went on. Two must not write.
            print("Somebody else has taken this run over.", flush=True)
            os._exit(CODES["busy"])


def main(config: Config, folder: Path, run: Run, threads: int, stale: float, result: str) -> None:
    """What a process of `processes.Processes` does; it lives no longer than its parent."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_watch_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        outcome = attempt(config, folder, run, stale, result)
    except KeyboardInterrupt:
        outcome = "stopped"  # before or after the run itself; its claim dies with us
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: threads of the run's libraries must not keep a finished worker alive.
    os._exit(CODES[outcome])


def _interrupt(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the checkpoint short
    raise KeyboardInterrupt


def _watch_parent() -> None:
    """The parent keeps our standard input open, and says nothing: its end is the parent's."""
    while os.read(0, 1024):
        pass
    print(f"{time.ctime()}: the sweep is gone, so this run stops as well.", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
