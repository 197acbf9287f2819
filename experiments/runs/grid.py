"""Which runs a sweep is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any, get_type_hints

from trlearner.experiments.presets.config import Config

RELATION = (
    "encoder",
    "dim",
    "heads",
    "normalize",
    "mixture",
    "temperature",
    "align",
    "top_k",
    "relation_queries",
)
"""What only the relation term knows: without it (``lam=0``), all their values are the same run."""


def expand(base: Config, vary: Mapping[str, Sequence[Any]]) -> list[Config]:
    """Every combination of the values, seed by seed, so that an early look sees every setting.

    Args:
        base: Whatever does not vary.
        vary: Values of any field of `Config`; ``"options.omega"`` is the option ``omega``.

    Raises:
        ValueError: There is no such field, or nothing to choose from.

    Example:
        >>> runs = expand(Config("regression/sinusoid"), {"lam": [0, 0.1], "heads": [2, 4, 8]})
        >>> [(run.lam, run.heads) for run in runs]  # one without the term, where heads mean nothing
        [(0.0, 4), (0.1, 2), (0.1, 4), (0.1, 8)]
    """
    known = {one.name for one in fields(Config)} - {"options"}
    for name, values in vary.items():
        if name not in known and not name.startswith("options."):
            raise ValueError(
                f"Only settings can vary: {', '.join(sorted(known))}, and options.NAME; "
                f"got {name!r}."
            )
        if not values:
            raise ValueError(f"{name} must be given one value or more, got none.")
    names = sorted(vary, key=lambda name: name != "seed")  # stable, so the rest keeps its order
    combinations = product(*(vary[name] for name in names))
    return unique(
        (_with(base, dict(zip(names, values, strict=True))) for values in combinations), base
    )


def unique(configs: Iterable[Config], usual: Config | None = None) -> list[Config]:
    """Each run once; those without the relation term get the `usual` settings of it.

    Args:
        configs: May tell runs apart that are the same.
        usual: `Config`'s own defaults, if it is not given.
    """
    usual = usual or Config("")
    settings = {name: getattr(usual, name) for name in RELATION}
    found = (replace(one, **settings) if one.lam == 0 else one for one in configs)
    return list({one.hash(): one for one in map(_exact, found)}.values())


def settings(config: Config) -> dict[str, Any]:
    """What tells a run from others, as JSON has it; what means nothing without the term is left out.

    Example:
        >>> settings(Config("a", lam=0, options={"omega": 1.0}))["options.omega"]
        1.0
        >>> "heads" in settings(Config("a", lam=0))
        False
    """
    record = config.record()
    options = {f"options.{name}": value for name, value in record.pop("options").items()}
    unused = RELATION if config.lam == 0 else ()
    return {name: value for name, value in {**record, **options}.items() if name not in unused}


def _with(base: Config, values: Mapping[str, Any]) -> Config:
    options = {n.partition(".")[2]: v for n, v in values.items() if n.startswith("options.")}
    plain = {n: v for n, v in values.items() if not n.startswith("options.")}
    return replace(base, **plain, options={**base.options, **options})


def _exact(config: Config) -> Config:
    """With 0 as 0.0 where a fraction is meant: they are equal, but their hashes would not be."""
    hints = get_type_hints(Config)
    whole = {
        one.name: float(value)
        for one in fields(Config)
        if hints[one.name] is float and isinstance(value := getattr(config, one.name), int)
    }
    return replace(config, **whole)
