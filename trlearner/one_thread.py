"""One thread at a time reads or replaces the tensors of a module."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock, get_ident
from types import TracebackType

from torch import nn


class Busy(RuntimeError):
    """Another thread runs the same modules."""


class OneThread:
    """While it is open, other threads that open one on any of these modules are refused.

    A pure call puts other tensors in place of a module's own until its forward is over. A second thread would
    compute with them, or take them for the module's. The same thread may open as many as it likes, and so may
    the thread in which autograd computes something again: the first one has left its forward by then.

    Args:
        modules: All of them, submodules included: two learners may share a part.

    Example:
        >>> with OneThread(nn.Linear(1, 1).modules()):
        ...     pass
    """

    __slots__ = ("_modules", "_taken")

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules
        self._taken: dict[int, int] = {}

    def __enter__(self) -> None:
        me = get_ident()
        taken = dict.fromkeys(map(id, self._modules), me)
        with _lock:
            if _running:
                if any(_running.get(key, me) != me for key in taken):
                    raise Busy(
                        "this learner or encoder is being run by another thread, which has put other "
                        "parameters in place of its own. Give each thread a copy, copy.deepcopy(learner), or "
                        "let the threads take turns with a threading.Lock around each meta-step."
                    )
                taken = {key: me for key in taken if key not in _running}
            _running.update(taken)
        self._taken = taken

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for key in self._taken:
            del _running[key]


_lock = Lock()
_running: dict[int, int] = {}
"""By the ids of modules, the thread that runs them."""
