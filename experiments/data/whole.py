"""Files that are either whole or not there, however many processes write them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
