"""What a comparison writes for TensorBoard."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


def clear(folder: Path) -> None:
    """Removes the events of earlier runs, which TensorBoard would draw as one zigzag with the new ones."""
    for old in folder.glob("*/events.out.tfevents.*"):
        old.unlink()


class Log:
    """One TensorBoard run per seed and arm, so that their curves lie over each other.

    Args:
        folder: Where the runs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[str, Any] = {}

    def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers by tag, e.g. ``{"loss/task": 1.5}``."""
        for tag, value in values.items():
            self.writer(run).add_scalar(tag, value, step)

    def image(self, run: str, tag: str, pixels: np.ndarray, step: int) -> None:
        """A picture ``[height, width, 3]`` of bytes."""
        self.writer(run).add_image(tag, pixels, step, dataformats="HWC")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self.writers.values():
            writer.close()

    def writer(self, run: str) -> Any:
        """TensorBoard's own, of one run."""
        if run not in self.writers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what TensorBoard itself imports
                from torch.utils.tensorboard import SummaryWriter
            self.writers[run] = SummaryWriter(str(self.folder / run))
        return self.writers[run]
