"""What a run writes for TensorBoard: curves, and its settings beside its result (HParams)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from trlearner.experiments.config import Config

import trlearner as tr


class Events:
    """The event file of one run.

    Args:
        folder: The run's.
        config: Shown as HParams.
        step: Where the run goes on; what an interrupted one wrote beyond is hidden.
    """

    def __init__(self, folder: Path, config: Config, step: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what TensorBoard itself imports
            from torch.utils.tensorboard import SummaryWriter
        self.config = config
        self.writer: Any = SummaryWriter(str(folder / "events"), purge_step=step + 1)

    def step(self, step: int, out: tr.Output) -> None:
        """The losses of a meta-step."""
        self.writer.add_scalar("loss/task", float(out.task_loss), step)
        if out.relations is not None:
            self.writer.add_scalar("loss/relation", float(out.relation_loss), step)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """What a validation found."""
        for name, value in values.items():
            self.writer.add_scalar(f"validation/{name}", value, step)

    def finish(self, best: float | None) -> None:
        """The settings, beside the best validation."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in self.config.record().items()
        }
        # `add_hparams` would make a run of its own of these three.
        for summary in hparams(plain, {"best validation": best or 0.0}):
            self.writer.file_writer.add_summary(summary)
        if best is not None:
            self.writer.add_scalar("best validation", best, self.config.steps)

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.close()
