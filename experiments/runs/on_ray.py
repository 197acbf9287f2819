"""Runs of a sweep on a Ray cluster, whose machines share the folder of results.

Every machine needs trlearner with the extra ``ray``, and the data, in the same places. Ray moves nothing
but the configs: what a run finds is in the shared folder.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
import torch
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import claim, worker
from trlearner.experiments.runs.worker import RESULT, Outcome, Run


def _attempt(
    config: Config, folder: Path, run: Run, threads: int, stale: float, result: str
) -> Outcome:
    torch.set_num_threads(threads)
    try:
        return worker.attempt(config, folder, run, stale, result)
    except KeyboardInterrupt:  # cancelled before or after the run itself
        return "stopped"


class Cluster:
    """So many runs at once, spread over the machines of a cluster.

    Args:
        run: What they do; importable on every machine.
        workers: How many; by default as many as fit the cores of the cluster, which may grow.
        threads: Of torch, and cores reserved, in each.
        stale: As `claim.STALE`.
        address: Of the cluster; by default the one that is found, or a new one on this machine.
        result: The file that each of them ends with.
    """

    def __init__(
        self,
        run: Run,
        workers: int | None = None,
        threads: int = 1,
        stale: float = claim.STALE,
        address: str | None = None,
        result: str = RESULT,
    ) -> None:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        self.run, self.workers, self.threads, self.stale = run, workers, threads, stale
        self.result = result
        # A process for each run, as on one machine; and we, not Ray, decide what is tried again.
        self.attempt = ray.remote(num_cpus=threads, max_calls=1, max_retries=0)(_attempt)
        self.running: dict[Any, tuple[str, Path]] = {}

    @property
    def slots(self) -> int:
        """How many fit now."""
        return self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // self.threads)

    def __len__(self) -> int:
        return len(self.running)

    def start(self, key: str, config: Config, folder: Path) -> None:
        """Hands a run to the cluster; `key` stands for it."""
        # Relative paths would begin elsewhere on other machines.
        job = (config, folder.absolute(), self.run, self.threads, self.stale, self.result)
        self.running[self.attempt.remote(*job)] = key, folder

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Runs that have ended: as soon as there is one, or none after so many seconds."""
        if not self.running:
            time.sleep(seconds)
            return []
        over, _ = ray.wait(list(self.running), num_returns=1, timeout=seconds)
        ended = [(one, *self.running.pop(one)) for one in over]
        return [(key, _outcome(one, folder)) for one, key, folder in ended]

    def stop(self, patience: float = 60.0) -> None:
        """Has every run save its checkpoint and end; kills those that take too long."""
        left = list(self.running)
        try:
            for one in left:
                ray.cancel(one)  # a KeyboardInterrupt there
            _, left = ray.wait(left, num_returns=len(left), timeout=patience) if left else ([], [])
        finally:  # Ctrl-C ends the patience
            for one in left:
                ray.cancel(one, force=True)
            self.running.clear()


def _outcome(one: Any, folder: Path) -> Outcome:
    try:
        outcome: Outcome = ray.get(one)
        return outcome
    except ray.exceptions.TaskCancelledError:
        return "stopped"
    except ray.exceptions.RayError as error:  # its process or machine died, or could not begin
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a") as log:
            log.write(f"{error}\n")
        return "lost"
