"""What a `TaskMemory` saves, checked before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trlearner.engines.task_learner import GradientTaskLearner
from trlearner.learners.protocol import Learner
from trlearner.memory.labels import PARTS as OF_LABELS
from trlearner.memory.options import TUNED
from trlearner.memory.remembered import finite

PARTS = ("fast", "state", "labels", "rule", *TUNED)


def check_state(state: Any, learner: Learner | None, rule: str) -> None:
    """Refuse what `TaskMemory.state_dict` did not return, or what was damaged since.

    Args:
        state: What is to be loaded.
        learner: Whose adapted models are in it.
        rule: That of the memory.

    Raises:
        TypeError: It is no dict, or a part is none.
        ValueError: Parts are missing, models are incomplete, a number in them is not finite, or the settings
            were found for another rule.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state must be the dict that memory.state_dict() returned, got {type(state).__name__}."
        )
    missing = [part for part in PARTS if part not in state]
    if missing:
        raise ValueError(
            f"state must have the parts {list(PARTS)}, but {missing} are missing. Pass what "
            "memory.state_dict() returned, not the learner's state_dict()."
        )
    if state["rule"] != rule:
        raise ValueError(
            f"state['rule'] must be that of the memory, {rule!r}, got {state['rule']!r}. Make the memory "
            f"with rule={state['rule']!r}."
        )
    fast, before = state["fast"], state["state"]
    for part in ("fast", "state", "labels"):
        _check_tensors(part, state[part])
    if not fast and not before:
        return  # of a memory that is empty
    if learner is None:
        raise ValueError(
            "state['fast'] holds models of a learner, but the memory has none. Make it with the learner "
            "that it was saved with."
        )
    lacking = sorted(learner.state().keys() - before.keys())
    if lacking:
        raise ValueError(
            f"state['state'] must hold the weights of the learner when tasks were remembered, but "
            f"{lacking} are missing. Save the memory again with memory.state_dict()."
        )
    _check_models(fast, learner)


def _check_tensors(part: str, tensors: Any) -> None:
    counts = {"count": int} if part == "labels" else {}
    values = dict(tensors) if isinstance(tensors, Mapping) else {"": tensors}
    other = [
        type(value).__name__
        for name, value in values.items()
        if not isinstance(value, counts.get(name, Tensor))
    ]
    if other or not isinstance(tensors, Mapping):
        raise TypeError(
            f"state[{part!r}] must be a dict of tensors by name, got {(other or ['Tensor'])[0]}. Pass "
            "what memory.state_dict() returned."
        )
    if part == "labels" and set(OF_LABELS) - set(tensors):
        raise ValueError(
            f"state['labels'] must have the parts {list(OF_LABELS)}, got {sorted(tensors)}. Save the memory "
            "again with memory.state_dict()."
        )


def _check_models(fast: Mapping[str, Tensor], learner: Learner) -> None:
    tasks = {len(t) if t.ndim else 0 for t in fast.values()}
    if len(tasks) != 1 or 0 in tasks:
        shapes = {name: list(t.shape) for name, t in fast.items()}
        raise ValueError(
            f"state['fast'] must hold [tasks, ...] tensors of the same tasks, at least one, got {shapes}. "
            "Save the memory again with memory.state_dict()."
        )
    if isinstance(learner, GradientTaskLearner):
        wanted = {n: (t.shape, t.dtype) for n, t in learner.start(learner.state()).items()}
        given = {n: (t.shape[1:], t.dtype) for n, t in fast.items()}
        wrong = sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n))
        if wrong:
            raise ValueError(
                f"state['fast'] must hold what the learner adapts, with its shapes and dtypes, but {wrong} "
                "differ or are missing. Load it into a memory of the learner that it was saved with."
            )
    whole = finite(fast).cpu()
    if not whole.all():
        raise ValueError(
            f"remembered models must be finite, got NaN or infinity in those of tasks "
            f"{(~whole).nonzero().flatten().tolist()}. Remember these tasks again."
        )
