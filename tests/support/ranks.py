"""Real processes that wait for something to do together."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Case = Callable[[int, int], Any]
LIMIT = 120.0  # seconds, for any one case
HOME = str(Path(__file__).resolve().parents[2])


@dataclass
class Failed:
    """An error that a case raised."""

    kind: str
    text: str
    trace: str


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def join(rank: int, size: int, port: int, timeout: float = 60.0) -> None:
    """Makes this process a rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*neighbour")
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )


def started(target: Callable[..., None], *args: Any, rank: int) -> Any:
    """A process that runs ``target(rank, *args)``; torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "trlearner"])  # DDP imports the former
    process = context.Process(target=target, args=(rank, *args), daemon=True)
    sys.path.append(HOME)  # for the process to find `tests.test_...` as pytest called it
    try:
        process.start()
    finally:
        sys.path.remove(HOME)
    return process


class Ranks:
    """Processes of one group; ``ranks(case)`` is what ``case(rank, size)`` returns on each of them."""

    def __init__(self, size: int) -> None:
        self.size, port = size, free_port()
        pipes = [multiprocessing.Pipe() for _ in range(size)]
        self.ends = [ours for ours, _ in pipes]
        self.processes = [
            started(_serve, size, port, theirs, rank=rank) for rank, (_, theirs) in enumerate(pipes)
        ]
        for _, theirs in pipes:
            theirs.close()

    def __call__(self, case: Case) -> list[Any]:
        for end in self.ends:
            end.send_bytes(pickle.dumps(case))
        deadline = time.monotonic() + LIMIT
        for rank, end in enumerate(self.ends):
            if not end.poll(max(0.0, deadline - time.monotonic())):
                self.close()
                raise TimeoutError(f"rank {rank} of {self.size} did not finish {case}")
        return [pickle.loads(end.recv_bytes()) for end in self.ends]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, port: int, end: Connection) -> None:
    join(rank, size, port)
    while True:
        try:
            case = pickle.loads(end.recv_bytes())
        except EOFError:  # nobody is there any more
            return
        try:
            found = case(rank, size)
        except Exception as error:  # looked at by the test of this case
            found = Failed(type(error).__name__, str(error), traceback.format_exc())
        dist.barrier()
        end.send_bytes(pickle.dumps(found))


class Job:
    """Ranks that run ``target(rank, *args)`` once, each with its output in a file; they may be lost."""

    def __init__(self, size: int, folder: Path, target: Callable[..., None], *args: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.paths = [folder / f"{rank}.txt" for rank in range(size)]
        self.processes = [
            started(_write, target, str(path), *args, rank=rank)
            for rank, path in enumerate(self.paths)
        ]

    def ended(self, within: float, waits_for: list[int] | None = None) -> list[str]:
        """What each rank said, once they, or some of them, have ended; none is left running."""
        deadline = time.monotonic() + within
        for rank, process in enumerate(self.processes):
            if waits_for is None or rank in waits_for:
                process.join(max(0.0, deadline - time.monotonic()))
        self.codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [path.read_text() for path in self.paths]


def _write(rank: int, target: Callable[..., None], path: str, *args: Any) -> None:
    out = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    target(rank, *args)
