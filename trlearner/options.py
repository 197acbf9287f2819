"""The options of `TRLearner`, and what they must be."""

from __future__ import annotations

from typing import Any, Literal, get_args

from trlearner.checks import check_number, check_whole
from trlearner.consistency import Mixture, Normalize, check_temperature
from trlearner.encoders.protocol import Encoder, HasPrototypes

Align = Literal["none", "sinkhorn", "hungarian"]
ChunkSize = int | Literal["auto"] | None

OPTIONS = (
    "lam",
    "normalize",
    "temperature",
    "mixture",
    "align",
    "top_k",
    "queries",
    "head",
    "chunk_size",
    "memory_budget",
    "planned_steps",
)
"""May be set anew at any time, so they are checked at every step."""


def check_options(*, encoder: Encoder, **options: Any) -> None:
    """Refuse options that make no sense.

    Raises:
        ValueError: Naming the option, what it was and what it may be.
    """
    lam, queries, align = options["lam"], options["queries"], options["align"]
    check_number("lam", lam, least=0)
    if isinstance(queries, bool) or not (isinstance(queries, (int, float)) and 0 < queries <= 1):
        raise ValueError(f"queries must be a share in (0, 1], got {queries!r}.")
    check_temperature(options["temperature"])
    for name in ("top_k", "chunk_size", "planned_steps", "memory_budget"):
        if not (
            name == "chunk_size" and isinstance(options[name], str) and options[name] == "auto"
        ):
            check_whole(name, options[name], optional=True)
    if options["memory_budget"] is not None and options["chunk_size"] != "auto":
        raise ValueError(
            f"memory_budget goes with chunk_size='auto', got chunk_size={options['chunk_size']!r}."
        )
    if not (options["head"] is None or isinstance(options["head"], str)):
        raise ValueError(
            f"head must be the name of the model's last layer or None, got {options['head']!r}."
        )
    for name, kinds in (("normalize", Normalize), ("mixture", Mixture), ("align", Align)):
        if options[name] not in get_args(kinds):
            raise ValueError(f"{name} must be one of {get_args(kinds)}, got {options[name]!r}.")
    if align != "none" and not isinstance(encoder, HasPrototypes):
        raise ValueError(
            f"align={align!r} compares class prototypes, which {type(encoder).__name__} "
            "does not have. Use InputEncoder or LabelledEncoder, or align='none'."
        )
