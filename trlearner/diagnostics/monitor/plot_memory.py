"""A memory's answer to one new task as a picture, for a notebook or a paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trlearner.base.checks import check_instance, check_whole, shown
from trlearner.engines.collected_models import Predict
from trlearner.memory.recall import Recalled
from trlearner.memory.remembered import own_predictions
from trlearner.memory.task_memory import TaskMemory
from trlearner.tasks.samples import Samples, samples_of

POINTS = 200
"""Inputs at which curves are drawn, unless they are given."""

ROOM = 0.25
"""Curves go on beyond the shots by this share of their range."""

FAR = 2.0
"""The picture reaches beyond the labels by so many of their ranges at most: an own model that exploded would
flatten all else."""

OWN, RECALLED = "#0072b2", "#d55e00"
OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by the colour-blind, too."""


@torch.no_grad()
def plot_memory(
    memory: TaskMemory,
    support: Samples | tuple[Tensor, Tensor],
    query: Samples | tuple[Tensor, Tensor] | Tensor | None = None,
    *,
    own: Predict | None = None,
    models: int = 3,
    title: str = "",
) -> Any:
    """Draws what a memory answers to one new task, and which remembered models contribute most.

    The picture has the task's shots, the answer of its own adapted model, the memory's answer with its 95 %
    band, and thin lines for the models with the largest coefficients, which the legend names with these.
    There is no band where the memory knows no deviations: by the softmax rule. At share 0 the memory's answer
    is the own model's, and no model contributes.

    Args:
        memory: Answers.
        support: One task ``[1, shots, 1]``, e.g. ``batch.support[:1]``: its inputs and labels are numbers.
        query: Inputs ``[1, points, 1]`` at which curves are drawn; by default 200 around the shots. Samples
            with labels are drawn as dots, and curves go over the range of their inputs.
        own: The task's own model, where the memory has no learner.
        models: So many remembered models are drawn at most.
        title: Above it.

    Returns:
        A ``matplotlib.figure.Figure``, which a notebook shows and ``.savefig("memory.png")`` keeps.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: There is not one task whose inputs and labels are numbers, or the memory is empty.

    Example:
        >>> import trlearner as tr
        >>> g = torch.Generator().manual_seed(0)
        >>> x, slope = torch.rand(20, 12, 1, generator=g), torch.rand(20, 1, 1, generator=g)
        >>> lines = tr.TaskBatch((x[:, :3], slope * x[:, :3]), (x[:, 3:], slope * x[:, 3:]))
        >>> memory = tr.TaskMemory(tr.MAML(torch.nn.Linear(1, 1), lr=0.3, steps=2))
        >>> memory.remember(lines)
        >>> figure = tr.plot_memory(memory, lines.support[:1])
        >>> figure.axes[0].get_legend_handles_labels()[1][:3]
        ['shots', 'own model', 'with the memory, share 1']
    """
    check_instance("memory", memory, TaskMemory, "Make one by tr.TaskMemory(learner).")
    check_whole("models", models, least=0)
    check_instance("title", title, str, "It is written above the picture.")
    shots = samples_of("support", support)
    _check_one_curve("support", shots)
    labelled, x = _points(query, shots)
    answer = memory.adapt(shots, own=None if own is None else [own])
    points = Samples.unchecked(x, x, None, None)
    figure = _figure()
    panel = figure.subplots()
    panel.plot(
        *_flat(*shots.real(0)), "o", color="black", mfc="white", ms=7, zorder=4, label="shots"
    )
    if labelled is not None:
        at, y = _flat(*labelled.real(0))
        panel.plot(at, y, ".", color="black", ms=3, zorder=0, label="queries")
    if answer.own is not None:
        panel.plot(
            *_flat(x, own_predictions(answer.own, points)), color=OWN, lw=2.5, label="own model"
        )
    _draw_answer(panel, memory, answer, x)
    frame = _limits(panel, shots if labelled is None else labelled)
    _draw_models(panel, answer, points, models)
    panel.set(xlabel="x", ylabel="y", title=title, ylim=frame)
    panel.grid(alpha=0.25)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot_memory draws with matplotlib, which is not installed. Install it with "
            "pip install 'trlearner[experiments]'.",
            name=error.name,
        ) from None
    return Figure(figsize=(8.5, 4.5), layout="constrained")  # an object: no window is opened


def _check_one_curve(name: str, samples: Samples) -> None:
    """Refuse all but one task whose inputs and labels are numbers."""
    x, y = samples.x, samples.y
    single = all(t[0, 0].numel() == 1 and t.is_floating_point() for t in (x, y))
    if len(samples) != 1 or not single:
        raise ValueError(
            f"{name} must be one task [1, samples, 1] whose inputs and labels are numbers, got inputs "
            f"{list(x.shape)} of {x.dtype} and labels {list(y.shape)} of {y.dtype}. Pass one task of "
            "several as batch.support[:1]; inputs of more dimensions cannot be drawn."
        )


def _points(query: Any, shots: Samples) -> tuple[Samples | None, Tensor]:
    """Samples with labels, if there are any, and the inputs at which curves are drawn."""
    shape = shots.x.shape[2:]
    if isinstance(query, Tensor):
        if query.shape != (1, query.numel(), *shape) or not query.numel():
            raise ValueError(
                f"query must be inputs {[1, 'points', *shape]} like those of support, got {shown(query)}."
            )
        return None, query.sort(dim=1).values
    labelled = None if query is None else samples_of("query", query)
    if labelled is not None:
        _check_one_curve("query", labelled)
    known = [shots.real(0)[0], *([] if labelled is None else [labelled.real(0)[0]])]
    low, high = torch.cat([t.flatten() for t in known]).aminmax()
    room = 0.0 if labelled is not None else ROOM * float(high - low) or 1.0
    x = torch.linspace(float(low) - room, float(high) + room, POINTS).to(shots.x)
    return labelled, x.reshape(1, POINTS, *shape)


def _draw_answer(panel: Any, memory: TaskMemory, answer: Recalled, x: Tensor) -> None:
    """The memory's answer and its band."""
    banded = memory.rule == "gaussian" and memory.mixture != "logits" and answer.share > 0
    mean, deviation = answer(x, std=True) if banded else (answer(x), None)
    at, y = _flat(x, mean)
    panel.plot(
        at, y, color=RECALLED, lw=2, zorder=3, label=f"with the memory, share {answer.share:g}"
    )
    if deviation is not None:
        [deviations] = _flat(1.96 * deviation)
        low, high = y - deviations, y + deviations
        panel.fill_between(at, low, high, color=RECALLED, alpha=0.2, lw=0, label="95 % band")


def _draw_models(panel: Any, answer: Recalled, points: Samples, count: int) -> None:
    """What the remembered models with the largest coefficients say."""
    if not answer.models.shape[1]:
        return
    weights = answer.weights.flatten(1)[0]
    largest = weights.abs().argsort(descending=True)[:count]
    chosen = answer.models[:, largest]
    said = answer.remembered.say_chosen(answer.own, points, chosen, answer.chunk_size)[0]
    named = zip(said, chosen[0].tolist(), weights[largest].tolist(), strict=True)
    for i, (curve, model, weight) in enumerate(named):
        colour = OTHERS[i % len(OTHERS)]
        label = f"model {model}: {weight:+.2f}"
        panel.plot(*_flat(points.x, curve), color=colour, lw=1, ls="--", label=label)


def _limits(panel: Any, known: Samples) -> tuple[float, float]:
    """Vertical limits around all that is drawn so far, but no further from the labels than `FAR` allows."""
    [labels] = _flat(known.real(0)[1])
    low, high = panel.get_ylim()
    far = FAR * float(labels.max() - labels.min()) or 1.0
    return max(low, float(labels.min()) - far), min(high, float(labels.max()) + far)


def _flat(*tensors: Tensor) -> list[Any]:
    return [t.detach().flatten().cpu().numpy() for t in tensors]
