"""Independent jobs, each in a process of its own, on as many cores as there are."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Made = TypeVar("Made")

Tell = Callable[..., None]
"""How a job tells how it stands; what it is called with must be plain data."""

WAIT = 0.1
"""Seconds between two looks at what the processes tell."""


def each(
    work: Callable[[Job, Tell], Made], jobs: Sequence[Job], workers: int, hear: Tell
) -> Iterator[tuple[Job, Made]]:
    """Does every job; yields those that are done with what they made, in the order in which they end.

    Jobs that are still at work are ended with the iteration.

    Args:
        work: Does one; a function of a module, so that another process can find it.
        jobs: What is to be done.
        workers: So many processes; with 1 all is done in this one.
        hear: Is called here with whatever a job tells.
    """
    if workers == 1:
        for job in jobs:
            yield job, work(job, hear)
        return
    context = multiprocessing.get_context("spawn")
    news = context.SimpleQueue()
    ready = partial(_begin, news)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=ready) as pool:
        try:
            yield from _as_they_end({pool.submit(_do, work, job): job for job in jobs}, news, hear)
        except BaseException:  # Ctrl-C, a job that failed, or nobody wants the rest
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _as_they_end(
    waiting: dict[Future[Made], Job], news: Any, hear: Tell
) -> Iterator[tuple[Job, Made]]:
    while waiting:
        while not news.empty():
            hear(*news.get())
        for done in [future for future in waiting if future.done()]:
            yield waiting.pop(done), done.result()
        time.sleep(WAIT)


_news: Any = None
"""In a process of `each`: where it tells how it stands."""


def _begin(news: Any) -> None:
    global _news
    _news = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(1)


def _do(work: Callable[[Any, Tell], Made], job: Any) -> Made:
    return work(job, _tell)


def _tell(*what: Any) -> None:
    _news.put(what)
