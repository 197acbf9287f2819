"""What a task has to offer, as one number a task: functions of its `Evidence`, known by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trlearner.base.checks import check_function, check_whole, shown
from trlearner.base.functional import directions
from trlearner.samplers.evidence import Evidence
from trlearner.tasks.coding import EPS, SIGMA2, coding_rates, masked_rows, unit_rows

BINS = 3
"""A regression task's targets fall into so many bins of about equal size."""


def diversity(
    task: Evidence, *, sigma2: float = SIGMA2, literal: bool = False
) -> Float[Tensor, " tasks"]:
    """The coding rate of a task's features: ``1/2 logdet(I + d / (n sigma^2) Z^T Z)``.

    Z are the features centred on their mean, each of length 1, so that neither the size of a task nor the
    scale of features counts. As published (arXiv 2307.08924), with `literal`, it is
    ``1/2 n logdet(I + Z Z^T / (n sigma^2))`` of the features as they are.
    """
    return coding_rates(_rows(task, literal), _real(task)[:, None], sigma2, literal)[:, 0]


def entropy(
    task: Evidence, *, bins: int = BINS, sigma2: float = SIGMA2, literal: bool = False
) -> Float[Tensor, " tasks"]:
    """The coding rate that is left within classes: the mean of their rates, each by its share of samples.

    Regression has bins of its targets' quantiles for classes; several target columns are averaged. Rows
    are prepared once, as in `diversity`, not anew within each class, or a tight class would look like a
    broad one. `sigma2` and `literal` are those of `diversity`.
    """
    member = _groups(task, bins).flatten(1, 2)
    rates = coding_rates(_rows(task, literal), member, sigma2, literal)
    size = member.sum(-1).to(rates)
    return (size * rates).sum(1) / size.sum(1).clamp(min=1)


def difficulty(task: Evidence) -> Float[Tensor, " tasks"]:
    """The norm of each task's support gradient before adaptation, over all that adapts."""
    return task.gradient_norm


def compactness(task: Evidence, *, bins: int = BINS) -> Float[Tensor, " tasks"]:
    """How close samples lie to their class: the mean cosine between a row and its class's mean.

    Rows are centred and brought to length 1, as in `diversity`; `bins` are those of `entropy`.
    """
    rows = _rows(task)
    member = _groups(task, bins).flatten(1, 2).to(rows)
    cosines = directions(member @ rows) @ rows.mT
    return (member * cosines).sum((1, 2)) / member.sum((1, 2)).clamp(min=1)


def separability(task: Evidence, *, bins: int = BINS) -> Float[Tensor, " tasks"]:
    """How far classes lie apart: the mean of 1 - cosine over pairs of their means; 0 without a pair.

    Rows and `bins` are those of `compactness`.
    """
    rows, member = _rows(task), _groups(task, bins)
    means = directions(member.to(rows) @ rows[:, None])  # [tasks, columns, groups, features]
    there = member.any(-1)
    pairs = there[..., :, None] & there[..., None, :]
    pairs = pairs & ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    apart = torch.where(pairs, 1 - means @ means.mT, 0.0)
    return apart.sum((1, 2, 3)) / pairs.sum((1, 2, 3)).clamp(min=1)


def enrichment(task: Evidence) -> Float[Tensor, " tasks"]:
    """The share of the feature space's directions that a task uses: ``tr(G)^2 / tr(G^2) / min(n - 1, d)``.

    G is the Gram matrix of centred rows of length 1; ``tr(G)^2 / tr(G^2)`` counts its eigenvalues, each by
    its weight, and is n where all are alike and 1 where there is one.
    """
    rows = _rows(task)
    count = _real(task).sum(1).to(rows)
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    used = rows.square().sum((1, 2)).square() / (gram.square().sum((1, 2)) + EPS**2)
    return used / (count - 1).clamp(min=1, max=rows.shape[2])


def _rows(task: Evidence, literal: bool = False) -> Float[Tensor, "tasks samples features"]:
    return (masked_rows if literal else unit_rows)(task.features, task.mask)


def _real(task: Evidence) -> Bool[Tensor, "tasks samples"]:
    if task.mask is not None:
        return task.mask
    return torch.ones_like(task.features[..., 0], dtype=torch.bool)


def _groups(task: Evidence, bins: int) -> Bool[Tensor, "tasks columns groups samples"]:
    """Which samples belong together by each column of the targets: classes of labels, bins of numbers.

    A bin is ``floor(bins * (below + equal / 2) / n)``: equal targets share one, whatever their order.
    """
    check_whole("bins", bins)
    y, real = task.targets, _real(task)
    columns, count = (y[..., None] if y.ndim == 2 else y.flatten(2)).mT, bins
    if columns.is_floating_point():
        among = real[:, None, None]
        below = (among & (columns[..., None, :] < columns[..., :, None])).sum(-1)
        equal = (among & (columns[..., None, :] == columns[..., :, None])).sum(-1)
        samples = real.sum(1).clamp(min=1)[:, None, None]
        columns = bins * (2 * below + equal) // (2 * samples)
    elif task.ways is None:
        raise ValueError(
            "scores of labelled tasks need the number of classes, got ways=None: build "
            "TaskBatch(..., ways=5)."
        )
    else:
        check_whole("ways", task.ways)
        count = task.ways
    names = torch.arange(count, device=columns.device)
    return (columns[:, :, None] == names[:, None]) & real[:, None, None]


Score = Callable[[Evidence], Tensor]
"""``score(evidence) -> [tasks]``."""

SCORES: dict[str, Score] = {
    score.__name__: score
    for score in (diversity, entropy, difficulty, compactness, separability, enrichment)
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
