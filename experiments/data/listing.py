"""CSV files with a header, row by row, and the files that they list: nothing outside of a folder."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

Row = dict[str, str]


def rows(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    """The number of each row's last line, and its cells by column; an absent cell is empty.

    Args:
        path: The file, UTF-8 with or without a mark.
        columns: Those that it must have.

    Raises:
        ValueError: It is no such file; the text names it, and the line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            names = reader.fieldnames or ()
            if missing := sorted(set(columns) - set(names)):
                raise ValueError(
                    f"{path}:1: the header must name the columns {sorted(columns)}, "
                    f"{missing} missing; got {list(names)}."
                )
            for row in reader:
                yield reader.line_num, {name: row[name] or "" for name in names}
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} must be UTF-8, got the byte 0x{error.object[error.start]:02x} after line "
                f"{reader.line_num}. Save it as UTF-8."
            ) from None
        except csv.Error as error:
            raise ValueError(
                f"{path}:{reader.line_num + 1}: this is no row of CSV: {error}."
            ) from None


def inside(root: Path, name: str) -> Path:
    """A file of a folder by its name on a list.

    Raises:
        ValueError: The name leads out of the folder. Links that lie in the folder are the owner's own.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        place = kind(name)
        if place.is_absolute() or place.drive or ".." in place.parts or "\0" in name:
            raise ValueError(
                f"{root} lists the file {name!r:.100}, which must lie in that folder. Take it off the list."
            )
    return root / name
