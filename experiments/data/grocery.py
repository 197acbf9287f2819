"""The Grocery Store photographs (Klasson et al. 2019): 81 sorts of food, of 43 coarse classes."""

from __future__ import annotations

from pathlib import Path

from trlearner.experiments.data.folder import shrunk
from trlearner.experiments.data.gallery import Gallery
from trlearner.experiments.data.listing import inside, rows
from trlearner.experiments.data.problem import Request, need


def by_coarse_class(request: Request) -> dict[str, Gallery]:
    """Coarse classes (e.g. apples) are in one split only: 26 to train on, 6 for validation, 11 to test.

    Options: ``size`` (84) and ``channels`` (3).
    """
    root = need(
        request,
        "images/grocery",
        "The Grocery Store dataset",
        "github.com/marcusklasson/GroceryStoreDataset (what is in its folder `dataset`)",
        "images/glyphs",
    )
    columns = ("Class ID (int)", "Class Name (str)", "Coarse Class Name (str)")
    sorts = {
        int(line[columns[0]]): (line[columns[1]], line[columns[2]])
        for _, line in rows(root / "classes.csv", columns)
    }
    pictures: dict[tuple[str, str], list[Path]] = {sorts[number]: [] for number in sorted(sorts)}
    for path, number in _lines(root):
        pictures[sorts[number]].append(inside(root, path))
    there = {names: files for names, files in pictures.items() if files}
    return shrunk(root, there, request).split("group", {"train": 26, "validation": 6, "test": 11})


def _lines(root: Path) -> list[tuple[str, int]]:
    """The path and the class of every photograph: from ``index.csv``, or from the authors' lists."""
    lists = [root / "index.csv"] if (root / "index.csv").exists() else sorted(root.glob("t*.txt"))
    lists += [] if len(lists) == 1 else sorted(root.glob("val.txt"))
    rows = [line.split(",") for file in lists for line in file.read_text("utf-8").splitlines()]
    return [(row[0].strip(), int(row[1])) for row in rows if row[0].strip() not in ("", "path")]
