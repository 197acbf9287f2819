"""How the whole suite runs: one thread a worker, shape checks on, nothing left to chance."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import jaxtyping
import pytest
import torch

if TYPE_CHECKING:
    from ranks import Ranks

torch.set_num_threads(1)  # two workers on two cores; more threads only fight each other

# Without bytecode, both workers and every process that a test starts compile the library and the tests
# again, which takes a minute of CPU time. `make clean` removes it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell ignores Ctrl-C for what it starts in the background, and Python then does so as well; the tests of
# interruptions send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# TRLEARNER_TYPECHECK=0 leaves the library as its users have it.
if os.environ.get("TRLEARNER_TYPECHECK", "1") != "0":
    from shape_checks import install

    install()

# Helper modules assert, too, and should say what differed.
pytest.register_assert_rewrite("reference", "contracts")

# The same examples in every run, however slow the machine.
hypothesis.settings.register_profile("trlearner", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("trlearner")


def pytest_ignore_collect(collection_path):
    """Keep helper modules from being imported a second time, as doctests."""
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    inside = collection_path.is_relative_to(os.path.dirname(__file__))
    return True if is_helper and inside else None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Give a worker whole files, so that what a file's tests share is made once and not in every worker."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"


def pytest_collection_finish():
    """Make collections of garbage rare: they took a quarter of all time.

    Each of them walked through modules and tests that stay until the end, over and over.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


ALL = pytest.StashKey[list[pytest.Item]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Keep what was collected before `-m` and `-k` choose from it; test_tiers.py looks at it."""
    config.stash[ALL] = list(items)


@pytest.fixture
def collected(request) -> list[pytest.Item]:
    """Every test of the suite, of all tiers."""
    return request.config.stash[ALL]


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    """Two ranks; `two(case)` is what `case(rank, size)` returns on each."""
    yield from _ranks(2)


@pytest.fixture(scope="session")
def four() -> Iterator[Ranks]:
    """Four ranks."""
    yield from _ranks(4)


def _ranks(size: int) -> Iterator[Ranks]:
    from ranks import Ranks

    found = Ranks(size)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _seeded():
    """Draw alike in whatever order tests run: many take weights from the global generator."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _unchecked(request):
    """Switch the shape checks off for tests marked `unchecked`."""
    before = jaxtyping.config.jaxtyping_disable
    if request.node.get_closest_marker("unchecked"):
        jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
