"""Runs of a sweep on this machine, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import claim
from trlearner.experiments.runs.worker import CODES, RESULT, Outcome, Run

START = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from trlearner.experiments.runs import worker
worker.main(*pickle.load(sys.stdin.buffer))
"""
"""What a worker is told: the same modules as here first, or it could not know the run's function."""

OUTCOMES: dict[int, Outcome] = {code: outcome for outcome, code in CODES.items()}


@dataclass
class Worker:
    """A process and what it is at."""

    process: subprocess.Popen[bytes]
    key: str


class Processes:
    """So many runs at once.

    Args:
        run: What they do; importable by name in a new process.
        workers: How many; by default as many as fit the cores.
        threads: Of torch, in each.
        stale: As `claim.STALE`.
        result: The file that each of them ends with.
    """

    def __init__(
        self,
        run: Run,
        workers: int | None = None,
        threads: int = 1,
        stale: float = claim.STALE,
        result: str = RESULT,
    ) -> None:
        self.slots = workers or max(1, _cores() // threads)
        self.run, self.threads, self.stale, self.result = run, threads, stale, result
        self.workers: list[Worker] = []

    def __len__(self) -> int:
        return len(self.workers)

    def start(self, key: str, config: Config, folder: Path) -> None:
        """Begins a run, which `key` stands for; what it prints goes to ``log.txt``."""
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(self.threads)
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                # Ctrl-C in the terminal is for us alone: `stop` tells the workers.
                start_new_session=True,
            )
        self.workers.append(Worker(process, key))
        job = (config, folder, self.run, self.threads, self.stale, self.result)
        _send(process.stdin, pickle.dumps(sys.path) + pickle.dumps(job))

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Runs that have ended: as soon as there is one, or none after so many seconds."""
        until = time.monotonic() + seconds
        while True:
            over = [worker for worker in self.workers if worker.process.poll() is not None]
            if over or time.monotonic() > until:
                break
            time.sleep(min(0.05, seconds))
        for worker in over:
            _close(worker.process.stdin)
            self.workers.remove(worker)
        return [(w.key, OUTCOMES.get(w.process.returncode, "lost")) for w in over]

    def stop(self, patience: float = 60.0) -> None:
        """Has every worker save its checkpoint and end; kills those that take too long."""
        try:
            for worker in self.workers:
                worker.process.terminate()
            until = time.monotonic() + patience
            for worker in self.workers:
                worker.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second Ctrl-C ends the patience
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()
                _close(worker.process.stdin)
            self.workers.clear()


def _send(pipe: IO[bytes] | None, content: bytes) -> None:
    assert pipe is not None
    try:
        pipe.write(content)
        pipe.flush()
    except BrokenPipeError:
        pass  # it died early, which `wait` will find


def _close(pipe: IO[bytes] | None) -> None:
    assert pipe is not None
    with suppress(BrokenPipeError):  # what it died without having read
        pipe.close()


def _cores() -> int:
    """Those we may use: on a cluster often fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
