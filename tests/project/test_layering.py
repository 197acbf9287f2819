"""The direction of dependencies: the library knows nothing of what is built on it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trlearner.experiments

import trlearner

PACKAGE = Path(trlearner.__file__).parent
UPSTAIRS = ("experiments", "integrations")
FORBIDDEN = (*UPSTAIRS, *(f"trlearner.{name}" for name in UPSTAIRS))
LAZY = ("PIL", "higher", "tensorboard", "torch.utils.tensorboard")
OPTIONAL = ("lightning", "matplotlib", "ray", "rich", "scipy", "torchopt", "tyro", "easyfsl")

MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in UPSTAIRS  # in a wheel they lie below
)


def module_name(path: Path) -> str:
    parts = ("trlearner", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute names of everything that `source` may import, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                base = here[: len(here) - node.level + 1]
                origin = ".".join([*base, *filter(None, [node.module])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            target = node.args[0]
            if name in ("import_module", "__import__") and isinstance(target, ast.Constant):
                names.add(str(target.value))
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def graph() -> dict[str, set[str]]:
    """Which modules of the library each of its modules imports."""
    names = {module_name(path) for path in MODULES}
    edges = {}
    for path in MODULES:
        module = module_name(path)
        found = imported(path.read_text("utf-8"), module, path.name == "__init__.py")
        edges[module] = {
            name
            for name in found & names - {module}
            # `from package import module` names both; the package is then only the way there.
            if not any(other.startswith(f"{name}.") for other in found & names)
        }
    return edges


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some cycle of the graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for follower in sorted(edges.get(node, ())):
            if found := visit(follower, [*trail, node]):
                return found
        done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(edges))), [])


def test_the_walk_finds_the_library():
    found = {module_name(path) for path in MODULES}
    assert {"trlearner", "trlearner.tasks.batch", "trlearner.regularizer.regularizer"} <= found


@pytest.mark.parametrize(
    "source",
    [
        "import trlearner.experiments.demo",
        "import integrations as i",
        "from trlearner import experiments",
        "from trlearner.integrations import higher",
        "from . import integrations",
        "from ..experiments.data import images",
        "def f():\n    from .. import experiments",
        "import importlib\nimportlib.import_module('trlearner.integrations.higher')",
        "__import__('experiments')",
    ],
)
def test_the_walk_sees_every_kind_of_import(source):
    module = "trlearner.learners.maml" if ".." in source else "trlearner.maml"
    names = imported(source, module, is_package=False)
    assert any(within(name, FORBIDDEN) for name in names), names


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_library_never_imports_what_is_built_on_it(path):
    names = imported(path.read_text("utf-8"), module_name(path), path.name == "__init__.py")
    found = sorted(name for name in names if within(name, FORBIDDEN))
    assert not found, f"{module_name(path)} must not import {found}: they build on the library"


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_the_library_has_no_import_cycle():
    edges = graph()
    assert sum(map(len, edges.values())) > 5
    found = cycle(edges)
    assert not found, "these import each other in a circle: " + " -> ".join(found)


FLOORS = (
    {"base"},
    {"tasks"},
    {"engines", "relations"},
    {"learners"},
    {"encoders", "memory", "samplers"},
    {"regularizer"},
    {"diagnostics", "distributed"},
)
"""The rooms of the library; each uses those of the floors below it only."""


def test_rooms_use_those_below():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    edges = {
        (module.split(".")[1], other.split(".")[1])
        for module, others in graph().items()
        for other in others
        if "trlearner" not in (module, other)
    }
    assert {room for edge in edges for room in edge} == set(floor)
    upwards = [(a, b) for a, b in edges if a != b and floor[b] >= floor[a]]
    assert not upwards, f"these rooms use others that lie no lower: {sorted(upwards)}"


EXPERIMENTS = ("data", "presets", "runs", "reporting", "demo", "bench", "evidence")
"""The rooms of the experiments; each uses those before it only."""


def test_rooms_of_the_experiments_use_those_before():
    [home] = trlearner.experiments.__path__
    upwards, number = [], {room: i for i, room in enumerate(EXPERIMENTS)}
    for path in Path(home).rglob("*.py"):
        own = path.relative_to(home).parts[0]
        module = ".".join(("trlearner.experiments", *path.relative_to(home).with_suffix("").parts))
        found = imported(path.read_text("utf-8"), module, path.name == "__init__.py")
        used = {name.split(".")[2] for name in found if name.startswith("trlearner.experiments.")}
        upwards += [(module, room) for room in used if number[room] > number.get(own, 99)]
    assert not upwards, f"these modules use rooms that come later: {sorted(upwards)}"


PROBE = """
import json, os, sys, warnings
import einops, jaxtyping, torch

def state():
    return {
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "warning filters": repr(warnings.filters),
    }

modules, before = set(sys.modules), state()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import trlearner
print(json.dumps({
    "file": trlearner.__file__,
    "modules": sorted(set(sys.modules) - modules),
    "changed": [key for key, value in state().items() if value != before[key]],
    "warnings": [str(warning.message) for warning in caught],
}))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What `import trlearner` does in a new interpreter, torch and the like already there.

    It inherits next to no environment: what the import has set here would hide what it sets there.
    """
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
    result = subprocess.run(
        [sys.executable, "-I", "-c", PROBE],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={name: os.environ[name] for name in kept if name in os.environ},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_loads_the_package_under_test(fresh):
    assert Path(fresh["file"]) == Path(trlearner.__file__)
    assert "trlearner.tasks.batch" in fresh["modules"]


@pytest.mark.parametrize("package", [*OPTIONAL, *LAZY])
def test_importing_leaves_what_is_optional_or_slow_alone(fresh, package):
    found = [name for name in fresh["modules"] if within(name, (package,))]
    assert not found, f"import {package} where it is used, not at the top: `import trlearner` did."


def test_importing_changes_nothing(fresh):
    assert fresh["changed"] == []


def test_importing_warns_of_nothing(fresh):
    assert fresh["warnings"] == []
