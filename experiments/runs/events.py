"""What a run writes for TensorBoard: relations, curves, and its settings beside its result (HParams)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from trlearner.experiments.presets.config import Config

import trlearner as tr

EVERY = 50
"""Steps between two points of a monitor's curve."""


class Events:
    """The event file of one run.

    Args:
        folder: The run's.
        config: Shown as HParams.
        step: Where the run goes on; what an interrupted one wrote beyond is hidden.

    Attributes:
        monitor: Shows the relations.
    """

    def __init__(self, folder: Path, config: Config, step: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what TensorBoard itself imports
            from torch.utils.tensorboard import SummaryWriter
        self.config = config
        self.writer: Any = SummaryWriter(str(folder / "events"), purge_step=step + 1)
        self.monitor = tr.RelationMonitor(self.writer, every=EVERY)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """What a validation found."""
        for name, value in values.items():
            self.writer.add_scalar(f"validation/{name}", value, step)

    def finish(self, best: float | None) -> None:
        """The settings, beside the best validation."""
        self.monitor.hparams(self.config.record(), {"best validation": best or 0.0})

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.close()
