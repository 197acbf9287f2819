"""The meter of the way through the library counts files and the moves between them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from support import way


def module(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_moves_are_calls_from_one_file_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way, "LIBRARY", tmp_path)
    helper = module(tmp_path / "helper.py", "def inside(): pass\ndef help(): inside(); inside()\n")
    entry = module(tmp_path / "entry.py", "def run(help): help(); own(); help()\ndef own(): pass\n")
    found = way.way(lambda: entry.run(helper.help))
    assert found.passed == ("entry.py", "helper.py", "helper.py")
    assert found.moves == 3
    assert found.files == ["entry.py", "helper.py"]


def test_an_exception_ends_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way, "LIBRARY", tmp_path)
    entry = module(
        tmp_path / "entry.py",
        "def run():\n    try: fail()\n    except KeyError: own()\n"
        "def fail(): raise KeyError\ndef own(): pass\n",
    )
    assert way.way(entry.run).moves == 1


@pytest.mark.full
@pytest.mark.unchecked  # a check of shapes moves through the files of types
def test_the_ways_start_at_the_regularizer_and_stay_short() -> None:
    """A new file or move needs a reason here. `tasks/nested` is there so that inputs may be structures."""
    for steps in (1, 5):
        found = way.way(way.meta_step(steps))
        assert found.files[0] == "regularizer/regularizer.py"
        assert len(found.files) <= 16 and found.moves <= 48 + 5 * steps
    found = way.way(way.collected())
    assert found.files[0] == "regularizer/regularizer.py" and len(found.files) <= 15
