"""All that a run is made of, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import Field, asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_type_hints

from trlearner.experiments.data.setting import Range, check, check_options, given

FORMAT = 1
"""Raised when results of older code are not to be mixed with new ones."""

LATER = {"later": True}
"""Marks a setting that came after the first results: at its default the hash leaves it out."""

MANY = 10**6

LIMITS = {
    "lam": Range(0, MANY),
    "seed": Range(0, 2**63 - 1),
    "steps": Range(1, 10**9),
    "tasks": Range(1, MANY),
    "shots": Range(1, MANY),
    "queries": Range(1, MANY),
    "ways": Range(1, MANY),
    "train_tasks": Range(1, MANY),
    "pool": Range(1, MANY),
    "inner_steps": Range(0, 1000),
    "inner_lr": Range(0, MANY),
    "outer_lr": Range(0, MANY),
    "clip": Range(0, MANY),
    "dim": Range(1, MANY),
    "heads": Range(1, MANY),
    "temperature": Range(0, MANY, without=0),
    "top_k": Range(1, MANY),
    "relation_queries": Range(0, 1, without=0),
    "average": Range(0, 1, without=1),
    "validate_every": Range(1, 10**9),
    "validation_tasks": Range(1, MANY),
    "patience": Range(0, 10**9),
    "test_tasks": Range(1, MANY),
    "test_steps": Range(0, 1000),
}
"""What numbers mean something; beyond them a run trains uphill, not at all, or for ever."""

PROBLEM = re.compile(r"([a-z0-9_-]+(/[a-z0-9_-]+)*)?", re.ASCII)
"""The name of a problem is also the path of its folder, and leads nowhere else."""


@dataclass(frozen=True)
class Config:
    """One training run. Everything here changes the result; where and how fast it runs does not.

    Attributes:
        problem: E.g. ``regression/sinusoid``; ``trlearner data`` lists them.
        learner: The base learner.
        lam: The weight of the relation term; 0 is the learner alone.
        seed: Of the network, the batches and the relation layer.
        steps: Meta-steps.
        tasks: Tasks of a meta-step.
        shots: Support samples of a task (of each class).
        queries: Query samples of a task (of each class).
        ways: Classes of a task.
        train_tasks: Train on so many tasks only.
        pool: Fix so many samples of each training task.
        inner_steps: Steps of the inner loop.
        inner_lr: Its rate.
        outer_lr: Rate of Adam.
        clip: Outer gradients are clipped at this norm; 0 leaves them.
        encoder: The relation layer's task encoder; ``auto`` is the problem's own.
        dim: Width of a task embedding.
        heads: Heads of the relation layer.
        normalize: As in `trlearner.TRLearner`.
        mixture: As there.
        temperature: Of the softmax.
        align: As there; ``auto`` is the problem's own.
        top_k: As there.
        relation_queries: The share of queries that the relation term uses.
        average: Decay of averaged weights, which are validated and tested; 0 takes the last ones.
        validate_every: Meta-steps between validations.
        validation_tasks: Fixed tasks that decide which weights are kept.
        patience: Stop after so many validations without a better one; 0 never stops.
        test_tasks: Fixed tasks that the result is of.
        test_steps: Numbers of inner steps at test time; the learner's own where empty.
        options: What only this problem knows.
        sampler: Which training tasks come: ``none`` draws uniformly, ``hard`` those with a high loss,
            ``adaptive`` those that lower the next batch's.
    """

    problem: str
    learner: Literal["maml", "fomaml", "metasgd", "anil", "tnet", "protonet", "bayes-head"] = "maml"
    lam: float = 0.1
    seed: int = 0
    steps: int = 2000
    tasks: int = 16
    shots: int = 5
    queries: int = 10
    ways: int = 5
    train_tasks: int | None = None
    pool: int | None = None
    inner_steps: int = 5
    inner_lr: float = 0.01
    outer_lr: float = 1e-3
    clip: float = 1.0
    encoder: Literal["auto", "input", "labelled", "update"] = "auto"
    dim: int = 32
    heads: int = 4
    normalize: Literal["sum", "softmax", "quotient"] = "sum"
    mixture: Literal["auto", "values", "logits"] = field(default="auto", metadata=LATER)
    temperature: float = 0.1
    align: Literal["auto", "none", "sinkhorn"] = "auto"
    top_k: int | None = None
    relation_queries: float = 1.0
    average: float = 0.0
    validate_every: int = 200
    validation_tasks: int = 100
    patience: int = 0
    test_tasks: int = 600
    test_steps: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    sampler: Literal["none", "hard", "adaptive"] = field(default="none", metadata=LATER)

    def __post_init__(self) -> None:
        """Refuses what no run can mean.

        Raises:
            ValueError: It names the setting, what was expected and what came.
        """
        kinds = _kinds()
        for one in fields(self):
            check(one.name, getattr(self, one.name), kinds[one.name], LIMITS.get(one.name))
        check_options(self.options)
        if len(self.problem) > 100 or not PROBLEM.fullmatch(self.problem):
            raise ValueError(
                "problem must be a name like regression/sinusoid (`trlearner data` lists them), "
                f"got {given(self.problem)}."
            )

    def hash(self) -> str:
        """Twelve hexadecimal digits that tell this run from every other."""
        unused = {one.name for one in fields(self) if _is_later_and_unused(one, self)}
        told = {name: value for name, value in self.record().items() if name not in unused}
        text = json.dumps({"format": FORMAT, **told}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def read(cls, record: dict[str, Any]) -> Config:
        """From `record`.

        Raises:
            ValueError: It has other settings than a config, or other values than they may have.
        """
        if not isinstance(record, dict):
            raise ValueError(f"a config must be settings with values, got {given(record)}.")
        names = {one.name for one in fields(cls)}
        needed = names - {one.name for one in fields(cls) if one.metadata == LATER}
        if strange := sorted(set(record) - names):
            raise ValueError(
                f"a config has no settings {given(strange)}. Is it of a newer version?"
            )
        if missing := sorted(needed - set(record)):
            raise ValueError(f"a config must have all settings, but has no {', '.join(missing)}.")
        steps = record["test_steps"]  # JSON has no tuples
        return cls(**{**record, "test_steps": tuple(steps) if isinstance(steps, list) else steps})


@cache
def _kinds() -> dict[str, Any]:
    """The type of each setting."""
    return get_type_hints(Config)


def _is_later_and_unused(setting: Field[Any], config: Config) -> bool:
    return "later" in setting.metadata and getattr(config, setting.name) == setting.default
