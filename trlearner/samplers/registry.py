"""The scores that a sampler knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trlearner.base.checks import check_function, shown
from trlearner.samplers import scores


class Evidence(NamedTuple):
    """What scores are made of.

    Attributes:
        features: Of every task's support samples, ``[tasks, samples, features]``.
        targets: Their targets, ``[tasks, samples, ...]``.
        mask: ``[tasks, samples]``, true where a sample is real; ``None`` where all are.
        ways: The number of classes, for labels.
        gradient_norm: Of each task's support gradient before adaptation, ``[tasks]``; zeros where a learner
            descends no gradient.
    """

    features: Tensor
    targets: Tensor
    mask: Tensor | None
    ways: int | None
    gradient_norm: Tensor


Score = Callable[[Evidence], Tensor]
"""``score(evidence) -> [tasks]``."""

SCORES: dict[str, Score] = {
    "diversity": lambda e: scores.diversity(e.features, e.mask),
    "entropy": lambda e: scores.entropy(e.features, e.targets, e.mask, ways=e.ways),
    "difficulty": lambda e: e.gradient_norm,
    "compactness": lambda e: scores.compactness(e.features, e.targets, e.mask, ways=e.ways),
    "separability": lambda e: scores.separability(e.features, e.targets, e.mask, ways=e.ways),
    "enrichment": lambda e: scores.enrichment(e.features, e.mask),
}


def register_score(name: str, score: Score) -> None:
    """Makes a score of yours known by name, for ``AdaptiveTaskSampler(scores=[..., name])``.

    Args:
        name: Not taken yet.
        score: A function of `Evidence`, which returns one number a task.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> register_score("spread", lambda task: task.features.std(1).mean(1))
        >>> "spread" in SCORES
        True
        >>> del SCORES["spread"]
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {shown(name)}.")
    check_function("score", score, "(evidence) -> a tensor [tasks]")
    if name in SCORES:
        raise ValueError(f"name must be new, got {name!r}; there are {sorted(SCORES)}.")
    SCORES[name] = score


def check_scores(names: Sequence[str]) -> None:
    """Refuse scores that there are not.

    Raises:
        ValueError: Naming those that there are.
    """
    listed = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    if not listed or isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"scores must be a sequence of distinct names, got {names!r}.")
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise ValueError(
            f"scores must be among {sorted(SCORES)}, got {unknown}. Give one of your own a name with "
            "tr.samplers.register_score(name, score)."
        )


def score_tasks(names: Sequence[str], evidence: Evidence) -> Tensor:
    """The scores of these names, ``[tasks, scores]``.

    Raises:
        ValueError: A score is not one finite number a task.
    """
    tasks, found = len(evidence.features), []
    with torch.no_grad():
        for name in names:
            value = SCORES[name](evidence)
            if not isinstance(value, Tensor) or value.shape != (tasks,):
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"score {name!r} must return one number a task, a tensor [tasks] = [{tasks}], "
                    f"got {got}."
                )
            found.append(value.detach().to(torch.get_default_dtype()))
    return torch.stack(found, 1)
