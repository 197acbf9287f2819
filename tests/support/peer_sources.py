"""Peers that no longer install, or not beside a CPU build of torch: of their files what the tests need."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from trlearner.experiments.bench.contender import Unavailable
from trlearner.experiments.bench.stub import learn2learn_maml

UNUSED = (
    "pandas",
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.resnet",
)
"""What easyfsl imports for plots, data sets and predesigned backbones."""

OURS = ("learn2learn", "torchmeta", "easyfsl", *UNUSED)


@contextlib.contextmanager
def learn2learn() -> Iterator[Any]:
    """``import learn2learn as l2l`` gives ``l2l.algorithms.MAML``; sources: TRLEARNER_LEARN2LEARN."""
    try:
        maml = learn2learn_maml()
    except Unavailable as reason:
        pytest.skip(f"learn2learn does not install any more; set TRLEARNER_LEARN2LEARN: {reason}")
    with forgotten():
        sys.modules["learn2learn"] = SimpleNamespace(algorithms=maml)  # type: ignore[assignment]
        yield maml


@contextlib.contextmanager
def torchmeta() -> Iterator[Any]:
    """``import torchmeta.modules`` works; installed without dependencies, or TRLEARNER_TORCHMETA."""
    with forgotten():
        try:
            spec = importlib.util.find_spec("torchmeta")
            installed = spec and spec.origin and str(Path(spec.origin).parents[1])
            if folder := os.environ.get("TRLEARNER_TORCHMETA") or installed:
                # Empty parents: their own import datasets, torchvision and h5py.
                for name in ("torchmeta", "torchmeta.utils"):
                    parent = sys.modules[name] = ModuleType(name)
                    parent.__path__ = [str(Path(folder, *name.split(".")))]
            modules = importlib.import_module("torchmeta.modules")
            utils = importlib.import_module("torchmeta.utils.gradient_based")
        except ImportError as reason:
            pytest.skip(
                f"torchmeta: {reason}. pip install --no-deps torchmeta==1.8.0, or set "
                "TRLEARNER_TORCHMETA to a clone"
            )
        yield SimpleNamespace(modules=modules, update=utils.gradient_update_parameters)


@contextlib.contextmanager
def easyfsl() -> Iterator[Any]:
    """``import easyfsl.methods, easyfsl.samplers`` work, with torchvision and pandas or without."""
    with forgotten():
        if importlib.util.find_spec("easyfsl") is None:
            pytest.skip(
                "easyfsl is not installed: it requires torchvision, which PyPI builds for CUDA only. "
                "pip install --no-deps easyfsl==1.5.0 suffices here"
            )
        try:
            import easyfsl.methods  # noqa: F401
        except Exception:  # torchvision without its operators raises a RuntimeError
            for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
                del sys.modules[name]
            sys.modules.update({name: unused(name) for name in UNUSED})
        methods = importlib.import_module("easyfsl.methods")
        samplers = importlib.import_module("easyfsl.samplers")
        yield SimpleNamespace(methods=methods, samplers=samplers)


def unused(name: str) -> mock.MagicMock:
    """A module in name only; torch looks for the spec of some when it is first compiled with."""
    module = mock.MagicMock()
    module.__spec__ = ModuleSpec(name, None)
    return module


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Whatever of these is imported inside is not there afterwards."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            example = name.startswith("trlearner.integrations.examples.")
            if example or name.partition(".")[0] in OURS:
                del sys.modules[name]
