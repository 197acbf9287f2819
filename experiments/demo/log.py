"""What a comparison writes for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from trlearner.experiments.runs import events


def clear(folder: Path) -> None:
    """Removes the events of earlier runs, which TensorBoard would draw as one zigzag with the new ones."""
    for old in folder.glob("*/events.out.tfevents.*"):
        old.unlink()


class Log(ExitStack):
    """One TensorBoard run per seed and arm, so that their curves lie over each other.

    Args:
        folder: Where the runs go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.writers: dict[str, Any] = {}

    def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers by tag, e.g. ``{"loss/task": 1.5}``."""
        for tag, value in values.items():
            self.writer(run).add_scalar(tag, value, step)

    def image(self, run: str, tag: str, pixels: np.ndarray, step: int) -> None:
        """A picture ``[height, width, 3]`` of bytes."""
        self.writer(run).add_image(tag, pixels, step, dataformats="HWC")

    def writer(self, run: str) -> Any:
        """TensorBoard's own, of one run."""
        if run not in self.writers:
            self.writers[run] = self.enter_context(events.writer(self.folder / run))
        return self.writers[run]
