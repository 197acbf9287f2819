"""The cells of the evidence table: which learner on which problem, and what is run for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import config_of

ARMS = ("alone", "paper", "term")

TUNING_SEED = 1000
"""Never one of the table."""

PAPER = {"lam": 0.1, "normalize": "quotient", "mixture": "values", "align": "none"}
"""The formulas of arXiv 2409.08474 to the letter; its λ is not known to us, this is our default."""

TERMS = ({"normalize": "softmax", "lam": 0.03}, {"normalize": "softmax", "lam": 0.3})
"""What is tried for the relation term where it is tuned."""

UNTUNED = {"lam": 0.1}
"""Elsewhere it is the library's defaults."""


@dataclass(frozen=True)
class Cell:
    """A learner on a problem.

    Attributes:
        name: Of the row.
        problem: As in `Config`.
        learner: As there.
        settings: Whatever else differs from the problem's preset.
        rates: What the learner alone is tuned over; with one only, nothing is tuned.
        seeds: How many the table has.
        remembered: How many training tasks a memory has.
        samples: Of each of them.
        validated: So many validation tasks tune it; no more than there are, for copies prove nothing.
        engine: As the learner's.
        longer: What differs in the runs of the table from those that tune.
    """

    name: str
    problem: str
    learner: str
    settings: dict[str, Any] = field(default_factory=dict)
    rates: tuple[dict[str, Any], ...] = ({},)
    seeds: int = 3
    remembered: int = 480
    samples: int = 100
    validated: int = 200
    engine: str = "auto"
    longer: dict[str, Any] = field(default_factory=dict)

    @property
    def tuned(self) -> bool:
        """Whether anything is."""
        return len(self.rates) > 1

    def rate_candidates(self) -> list[Config]:
        """What is tried for the learner alone."""
        settings = {**self.settings, "learner": self.learner, "lam": 0.0, "seed": TUNING_SEED}
        alone = config_of(self.problem, **settings)
        return [replace(alone, **one) for one in self.rates]

    def term_candidates(self, root: Path) -> list[Config]:
        """What is tried for the relation term, once the learner alone has been tuned."""
        alone = best(self.rate_candidates(), root)
        return [replace(alone, **one) for one in TERMS]

    def arm(self, name: str, root: Path, seed: int) -> Config:
        """What the table compares: the learner alone, the paper's term or the tuned one.

        Raises:
            ValueError: It is tuned by runs that have not been made.
        """
        alone = best(self.rate_candidates(), root)
        if name == "paper":
            alone = replace(alone, **PAPER)
        elif name == "term":
            alone = (
                best(self.term_candidates(root), root) if self.tuned else replace(alone, **UNTUNED)
            )
        return replace(alone, seed=seed, **self.longer)

    def done(self, root: Path) -> Iterator[tuple[str, int, Config, Path]]:
        """Arm, seed, config and folder of every run of the table that has ended."""
        for seed, name in product(range(self.seeds), ARMS):
            try:
                config = self.arm(name, root, seed)
            except ValueError:
                continue
            folder = root / config.problem / config.hash()
            if (folder / "result.json").exists():
                yield name, seed, config, folder


def best(configs: Sequence[Config], root: Path) -> Config:
    """The one with the best validation.

    Raises:
        ValueError: One has not been run.
    """
    if len(configs) == 1:
        return configs[0]
    return min(configs, key=lambda config: validation(root / config.problem / config.hash()))


def validation(folder: Path) -> float:
    """The best that a run had; the less, the better."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} has no result yet: run the stages before this one.") from None
    sign = 1 if result["better"] == "lower" else -1
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    scores = [next(iter(line["validation"][result["metric"]].values())) for line in lines]
    return min((sign * s for s in scores if s is not None), default=float("inf"))


CURVES: dict[str, Any] = {"steps": 4000, "validate_every": 400, "test_tasks": 1000}
LONGER = {"steps": 12000, "validate_every": 1000}
RATES = (
    {"inner_lr": 0.01, "outer_lr": 1e-3},
    {"inner_lr": 0.01, "outer_lr": 3e-3},
    {"inner_lr": 0.03, "outer_lr": 1e-3},
)

CELLS = (
    *(
        Cell(
            f"{problem}, {learner}",
            f"regression/{problem}",
            learner,
            CURVES,
            RATES,
            seeds=5,
            engine="compiled",
            longer=LONGER,
        )
        for problem in ("sinusoid", "harmonic", "families")
        for learner in ("maml", "anil", "metasgd", "tnet")
    ),
    *(
        Cell(
            f"Omniglot {shots}-shot, {learner}",
            "images/omniglot",
            learner,
            {"shots": shots},
            remembered=100,
            samples=15,
        )
        for shots in (1, 5)
        for learner in ("anil", "protonet")
    ),
    Cell("assays, anil", "drugs/simpd", "anil", remembered=64, samples=100, validated=13),
    Cell(
        "assays, fomaml",
        "drugs/simpd",
        "fomaml",
        {"tasks": 8, "steps": 500},
        remembered=64,
        samples=100,
        validated=13,
    ),
    Cell(
        "pose, fomaml",
        "pose/procedural",
        "fomaml",
        remembered=50,
        samples=60,
        validated=15,
        engine="batched",
    ),
)
