"""What an installation holds, and that the suite itself checks what it claims to."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import trlearner

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "trlearner": "trlearner",
    "experiments": "trlearner.experiments",
    "integrations": "trlearner.integrations",
}
in_repository = pytest.mark.skipif(
    not (ROOT / "trlearner" / "__init__.py").is_file(), reason="runs beside the sources only"
)


def listed_packages() -> list[str]:
    """The `packages` of pyproject.toml. Python 3.10 has no tomllib."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    block = text.partition("\npackages = [")[2].partition("]")[0]
    return [line.strip(' ",') for line in block.splitlines() if line.strip()]


def package_folders(folder: Path, package: str) -> dict[str, Path]:
    """Every folder with Python files in it, and the package that it should be."""
    folders = {path.parent for path in folder.rglob("*.py")}
    return {".".join([package, *path.relative_to(folder).parts]): path for path in folders}


def sources() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder, package in FOLDERS.items():
        found |= package_folders(ROOT / folder, package)
    return found


@in_repository
def test_every_package_is_listed():
    listed, there = listed_packages(), set(sources())
    assert "trlearner" in listed
    assert len(listed) == len(set(listed))
    missing = ", ".join(f'"{name}"' for name in sorted(there - set(listed)))
    assert not missing, f"add to `packages` in pyproject.toml: {missing}"
    stale = ", ".join(f'"{name}"' for name in sorted(set(listed) - there))
    assert not stale, f"remove from `packages` in pyproject.toml, no such folder: {stale}"


@in_repository
def test_every_package_has_an_init():
    bare = [str(path) for path in sources().values() if not (path / "__init__.py").is_file()]
    assert not bare, f"a folder with modules needs an __init__.py: {bare}"


@in_repository
def test_the_root_has_no_conftest():
    assert not (ROOT / "conftest.py").exists(), "it would put the repository root on sys.path"


def in_fresh_interpreter(code: str, cwd: Path) -> str:
    """What `code` prints, run where no source folder is in reach."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


IMPORTS = """
import importlib, pkgutil
for package in ("trlearner", "trlearner.experiments", "trlearner.integrations"):
    found = importlib.import_module(package)
    print(package, found.__doc__)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name.startswith("trlearner"):
                raise
        print(module.name)
"""


@pytest.mark.full
def test_experiments_and_integrations_live_under_trlearner_and_every_module_imports(tmp_path):
    """Unless it is another library that is missing."""
    lines = in_fresh_interpreter(IMPORTS, tmp_path).splitlines()
    for package in FOLDERS.values():
        assert sum(line.startswith(package + ".") for line in lines) > 5, package
    for package, word in {"experiments": "experiments", "integrations": "ecosystem"}.items():
        assert any(
            line.startswith(f"trlearner.{package} ") and word in line.split(" ", 1)[1]
            for line in lines
        )


@pytest.mark.parametrize("name", ["experiments", "integrations", "tests", "reference", "conftest"])
def test_nothing_else_is_installed(tmp_path, name):
    code = f"import importlib.util as u; print(u.find_spec({name!r}))"
    assert in_fresh_interpreter(code, tmp_path) == "None"


def test_the_installed_files_are_ours_alone():
    files = importlib.metadata.files("trlearner")
    assert files
    tops = {file.parts[0] for file in files} - {"..", "__pycache__"}
    ours = {top for top in tops if top.startswith(("trlearner", "__editable__"))}
    assert tops == ours, f"strangers in site-packages: {sorted(tops - ours)}"


def test_types_are_shipped():
    assert (Path(trlearner.__file__).parent / "py.typed").is_file()


MISSHAPEN = torch.ones(2, 3, 4), torch.ones(1, 4)


@pytest.mark.skipif(os.environ.get("TRLEARNER_TYPECHECK") == "0", reason="switched off by hand")
def test_shape_checks_are_on_in_every_worker():
    with pytest.raises(jaxtyping.TypeCheckError, match="relation_matrix"):
        trlearner.relation_matrix(*MISSHAPEN)


@pytest.mark.unchecked
def test_shape_checks_are_off_where_marked():
    with pytest.raises(ValueError, match="embeddings must be"):  # the library's own check
        trlearner.relation_matrix(*MISSHAPEN)


def test_one_thread_a_worker():
    assert torch.get_num_threads() == 1
