"""What is watched, in words; and a run's settings beside its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trlearner.learners.protocol import Learner
from trlearner.regularizer.regularizer import TRLearner


def describe(regularizer: TRLearner, learner: Learner | None) -> str:
    """A Markdown table of the regularizer's options and of the learner's."""
    heads, dim = regularizer.relation.weight.shape
    rows: dict[str, Any] = {
        "encoder": type(regularizer.encoder).__name__,
        "dim": dim,
        "heads": heads,
    }
    rows |= {"lam": regularizer.lam, "temperature": regularizer.temperature}
    rows |= vars(regularizer.options)
    rows["loss_fn"] = _name(regularizer.loss_fn)
    if learner is not None:
        rows["learner"] = type(learner).__name__
        rows |= {f"learner's {name}": value for name, value in _plain(learner).items()}
        count = sum(p.numel() for p in learner.parameters())
        rows["learner's parameters"] = f"{count:,}"
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| option | value |", "|---|---|", *lines])


def write_hparams(
    writer: Any, settings: Mapping[str, Any], results: Mapping[str, float], step: int
) -> None:
    """TensorBoard's HParams of this very run; `SummaryWriter.add_hparams` would make another one.

    Args:
        writer: A `SummaryWriter`; of another, only the results are written, as scalars.
        settings: What is no number, truth value or text is written as text.
        results: Written as scalars at `step`, too.
        step: Of the results.
    """
    if hasattr(writer, "file_writer"):
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in settings.items()
        }
        for summary in hparams(plain, dict(results)):
            writer.file_writer.add_summary(summary)
    for name, value in results.items():
        writer.add_scalar(name, value, step)


def _plain(learner: nn.Module) -> dict[str, Any]:
    """Its own settings, by name."""
    kinds = (bool, int, float, str, tuple, list, dict)
    return {
        name: value
        for name, value in vars(learner).items()
        if name[0] != "_" and name != "training" and isinstance(value, kinds)
    }


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
