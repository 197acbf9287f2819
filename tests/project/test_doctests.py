"""The examples in docstrings of experiments and integrations; pytest finds the library's by itself."""

import doctest
import pkgutil
from importlib import import_module

import pytest
import trlearner.experiments
import trlearner.integrations

OPTIONAL = ("on_ray", "in_jax", "integrations.examples")
"""They import what may not be installed, and have no examples."""

MODULES = [
    module.name
    for package in (trlearner.experiments, trlearner.integrations)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__") and not any(name in module.name for name in OPTIONAL)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_say_what_happens(name: str) -> None:
    try:
        module = import_module(name)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module).failed == 0
