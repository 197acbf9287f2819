"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from trlearner.experiments.data.whole import replaced
from trlearner.experiments.presets.config import Config


def save(path: Path, state: dict[str, Any]) -> None:
    """Replaces a checkpoint."""
    _replace(path, lambda file: torch.save(state, file))


def load(path: Path, config: Config, device: str) -> dict[str, Any] | None:
    """A checkpoint of this very config, if there is one; executes nothing that is in the file.

    Raises:
        ValueError: The file is damaged, or is of another config.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        stored = Config.read(state["config"]).record()  # with settings that came later
    except Exception:
        # torch's own text advises to execute what is in the file.
        raise ValueError(
            f"{path} is damaged, or no checkpoint of ours. Remove it to start anew."
        ) from None
    if stored != config.record():
        changed = [name for name, value in config.record().items() if stored.get(name) != value]
        raise ValueError(
            f"{path} belongs to a run with other settings ({', '.join(changed)}). Use another folder, "
            "or remove it to start anew."
        )
    return state


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        ValueError: The file is no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, but cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got a {type(value).__name__}.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by `value` as JSON; numbers that are none become null."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n"
    _replace(path, lambda file: file.write(text.encode()))


def write_lines(path: Path, values: Sequence[Any]) -> None:
    """Replaces a file by one line of JSON for each value."""
    lines = (json.dumps(_finite(v), sort_keys=True, allow_nan=False) + "\n" for v in values)
    text = "".join(lines)
    _replace(path, lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with replaced(path) as beside, open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
