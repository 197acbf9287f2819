"""Cases in a process of their own: what crashes or hangs there is a finding, and the rest goes on."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from fuzz.draw_case import draw
from fuzz.run import Finding, Tally, run_number, settings

PATIENCE = 1200.0
"""Seconds that one case may take; compiling takes most."""

Serve = Callable[[Connection, int], None]


def serve(pipe: Connection, number: int) -> None:
    """Sends the tally of one case after the other, from `number` on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with settings():
        while True:
            tally = Tally()
            run_number(number, tally)
            pipe.send(tally)
            number += 1


def tallies(number: int, serve: Serve = serve, patience: float = PATIENCE) -> Iterator[Tally]:
    """The tally of each case from `number` on; of a case that killed its process, a finding."""
    context = multiprocessing.get_context("spawn")
    while True:
        ours, theirs = context.Pipe()
        child = context.Process(target=serve, args=(theirs, number), daemon=True)
        child.start()
        theirs.close()
        try:
            while (tally := _received(ours, patience)) is not None:
                yield tally
                number += 1
        finally:
            child.terminate()
            child.join()
        dead = Tally(cases=1)
        text = f"the process died or hung (exit code {child.exitcode})"
        dead.add(Finding(draw(number), "process", "broken", text))
        yield dead
        number += 1


def _received(pipe: Connection, patience: float) -> Tally | None:
    try:
        return pipe.recv() if pipe.poll(patience) else None
    except (EOFError, ConnectionResetError):
        return None
