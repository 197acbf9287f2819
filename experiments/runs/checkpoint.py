"""What a run that was stopped goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trlearner.experiments.data import files
from trlearner.experiments.presets.config import Config


def save(path: Path, state: dict[str, Any]) -> None:
    """Replaces a checkpoint."""
    files.write(path, lambda file: torch.save(state, file))


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
