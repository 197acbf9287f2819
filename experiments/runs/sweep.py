"""Many runs at once; whatever stops them, the same command goes on where they were.

Every run has a folder named after its config (``ROOT/PROBLEM/HASH``). What has a result is not run again,
and several sweeps, on one machine or many, can share one ROOT: each run is done by one of them.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from trlearner.experiments.data.progress import Standing, Tally
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import claim, worker
from trlearner.experiments.runs.processes import Processes
from trlearner.experiments.runs.worker import Outcome, Run

LOSSES = 2
"""A run whose process has died so often (out of memory?) is given up."""


@dataclass(frozen=True)
class How:
    """How a sweep runs: nothing that a result depends on.

    Attributes:
        workers: Runs at once; by default as many as fit the cores.
        threads: Of torch, in each.
        on: This machine, or a Ray cluster whose machines share the folder.
        address: Of the cluster; by default the one that is found, or a new one on this machine.
        stale_minutes: A run on another machine is taken over after so long without a sign of life.
    """

    workers: int | None = None
    threads: int = 1
    on: Literal["here", "ray"] = "here"
    address: str | None = None
    stale_minutes: float = claim.STALE / 60


@runtime_checkable
class Pool(Protocol):
    """Whoever does the runs: `Processes` or `on_ray.Cluster`."""

    @property
    def slots(self) -> int: ...
    def __len__(self) -> int: ...
    def start(self, key: str, config: Config, folder: Path) -> None: ...
    def wait(self, seconds: float) -> list[tuple[str, Outcome]]: ...
    def stop(self, patience: float = 60.0) -> None: ...


def ablate(
    configs: Sequence[Config],
    run: Run,
    root: Path,
    how: How | None = None,
    command: Sequence[str] | None = None,
    result: str = worker.RESULT,
) -> int:
    """Does whatever is missing; says how to go on when it is interrupted, and what failed at the end.

    Args:
        configs: The runs, e.g. from `grid.expand`.
        run: Does one of them in its folder, e.g. ``partial(train.run, device="cuda")``. Must be importable.
        root: Where the folders go.
        how: In how many processes, and where.
        command: Said to go on with; by default the one that this process was started by.
        result: The file that each run ends with.

    Returns:
        What a shell is told: 0 when all are done, 1 when some failed, 130 when it was interrupted.
    """
    how = how or How()
    sweep = Sweep(configs, root, 60 * how.stale_minutes, result)
    try:
        with _terminable(), Tally() as tally:
            pool = _pool(how, run, result)
            try:
                sweep.drive(pool, tally)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    print("\nStopping; checkpoints are being saved.", flush=True)
                pool.stop()
                raise
    except KeyboardInterrupt:
        print(f"{sweep.summary()} Go on with:\n  {shlex.join(command or sys.orig_argv)}")
        return 130
    print(f"{sweep.summary()} Everything is in {root}")
    if sweep.failed:
        print(f"{len(sweep.failed)} failed; the same command tries them again:")
        print("\n".join(f"  {folder}: {text}" for folder, text in sweep.failures()))
    return 1 if sweep.failed else 0


class Sweep:
    """What is done, what has failed and what is left."""

    def __init__(
        self, configs: Sequence[Config], root: Path, stale: float, result: str = worker.RESULT
    ) -> None:
        self.configs = {config.hash(): config for config in configs}
        self.folders = {key: root / config.problem / key for key, config in self.configs.items()}
        self.stale, self.result = stale, result
        self.left = dict.fromkeys(self.configs)  # a dict, because it keeps the order
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.losses: Counter[str] = Counter()
        self.old_errors = {key: self._error(key) for key in self.configs}

    def drive(self, pool: Pool, tally: Tally) -> None:
        """Until every run is done or has failed, here or elsewhere."""
        self._look()
        while self.left or len(pool):
            for key in self._free(pool.slots - len(pool)):
                del self.left[key]
                pool.start(key, self.configs[key], self.folders[key])
            tally.show(self._standing(pool))
            for key, outcome in pool.wait(1.0):
                self._settle(key, outcome)
        tally.show(self._standing(pool))

    def summary(self) -> str:
        """In a sentence."""
        return f"{len(self.done)} of {len(self.configs)} runs are done."

    def failures(self) -> Iterator[tuple[Path, str]]:
        """Where each one is told in full, and how that ends."""
        for key in self.configs:
            if key in self.failed:
                path = self.folders[key] / "error.txt"
                lines = path.read_text().strip().splitlines() if path.exists() else []
                yield path, lines[-1] if lines else "unknown"

    def _look(self) -> None:
        """Settles what has been done or has failed without us."""
        for key in list(self.left):
            folder = self.folders[key]
            if worker.finished(folder, self.result):
                if not claim.held(folder, self.stale):
                    worker.tidy(folder)
                self._put(key, self.done)
            elif self._error(key) != self.old_errors[key] and not claim.held(folder, self.stale):
                self._put(key, self.failed)

    def _free(self, slots: int) -> list[str]:
        """The next runs that nobody is at."""
        if slots < 1:
            return []
        self._look()
        free = (key for key in self.left if not claim.held(self.folders[key], self.stale))
        return list(islice(free, slots))

    def _settle(self, key: str, outcome: Outcome) -> None:
        folder = self.folders[key]
        self.left[key] = None
        if outcome == "failed":
            self._put(key, self.failed)
        elif outcome == "lost" and not worker.finished(folder, self.result):
            self.losses[key] += 1
            if self.losses[key] >= LOSSES:
                text = f"The process did not begin, or died (out of memory?), {LOSSES} times"
                worker.fail(folder, f"{text}: see {folder / 'log.txt'}.\n")
                self._put(key, self.failed)

    def _put(self, key: str, where: set[str]) -> None:
        del self.left[key]
        where.add(key)

    def _error(self, key: str) -> int | None:
        """Which failure a folder tells of, if any."""
        try:
            return (self.folders[key] / "error.txt").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _standing(self, pool: Pool) -> Standing:
        return Standing(len(self.done), len(self.failed), len(pool), len(self.configs))


def _pool(how: How, run: Run, result: str) -> Pool:
    stale = 60 * how.stale_minutes
    if how.on == "here":
        return Processes(run, how.workers, how.threads, stale, result)
    from trlearner.experiments.runs.on_ray import Cluster

    return Cluster(run, how.workers, how.threads, stale, how.address, result)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as schedulers send it before they kill, is like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
