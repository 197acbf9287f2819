"""Files that are either whole or not there, however many processes write them; ``.gz`` are compressed."""

from __future__ import annotations

import gzip
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Readable = Path | zipfile.Path
"""A file or a folder, perhaps in an archive."""


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A file beside the target that takes its place in the end, or leaves nothing behind."""
    # In the same folder, so that replacing is one step of the file system's.
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Replaces a file by what `fill` writes, and waits until the disk has it."""
    with replaced(path) as beside, open(beside, "wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Readable) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        ValueError: The file is no JSON, or no object.
    """
    try:
        raw = path.read_bytes()
        value = json.loads(gzip.decompress(raw) if path.name.endswith(".gz") else raw)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise ValueError(f"{path} must be JSON, but cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got a {type(value).__name__}.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by `value` as JSON; numbers that are none become null. Equal values are equal bytes."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n"
    raw = text.encode()
    _write_bytes(path, gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)


def write_lines(path: Path, values: Sequence[Any]) -> None:
    """Replaces a file by one line of JSON for each value."""
    lines = (json.dumps(_finite(v), sort_keys=True, allow_nan=False) + "\n" for v in values)
    _write_bytes(path, "".join(lines).encode())


def _write_bytes(path: Path, raw: bytes) -> None:
    write(path, lambda file: file.write(raw))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value
