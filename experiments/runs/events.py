"""What runs write for TensorBoard: relations, curves, and settings beside results (HParams)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trlearner.experiments.presets.config import Config

import trlearner as tr

EVERY = 50
"""Steps between two points of a monitor's curve."""


def writer(folder: Path, **options: Any) -> Any:
    """TensorBoard's own, without the warnings of what TensorBoard itself imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), **options)


class Events(ExitStack):
    """The event file of one run.

    Args:
        folder: The run's.
        config: Shown as HParams.
        step: Where the run goes on; what an interrupted one wrote beyond is hidden.

    Attributes:
        monitor: Shows the relations.
    """

    def __init__(self, folder: Path, config: Config, step: int) -> None:
        super().__init__()
        self.config = config
        self.writer = self.enter_context(writer(folder / "events", purge_step=step + 1))
        self.monitor = tr.RelationMonitor(self.writer, every=EVERY)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """What a validation found."""
        for name, value in values.items():
            self.writer.add_scalar(f"validation/{name}", value, step)

    def finish(self, best: float | None) -> None:
        """The settings, beside the best validation."""
        self.monitor.hparams(self.config.record(), {"best validation": best or 0.0})
