"""Which parameters adapt, by names or patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from trlearner.base.checks import shown


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name, or a whole part of the module path to it, fits one of the patterns.

    Example:
        >>> [
        ...     n
        ...     for n in ("head.weight", "header.weight", "blocks.1.lora_A")
        ...     if matches(n, ("head", "*lora*"))
        ... ]
        ['head.weight', 'blocks.1.lora_A']
    """
    return any(fnmatchcase(name, p) or fnmatchcase(name, p + ".*") for p in patterns)


def as_patterns(adapts: str | Sequence[str] | None, model: nn.Module) -> tuple[str, ...] | None:
    """What was given for `adapts`, once each pattern fits a parameter of the model.

    Raises:
        TypeError: It holds no names.
        ValueError: A pattern fits nothing, or all that fits is frozen.
    """
    if adapts is None:
        return None
    patterns = (adapts,) if isinstance(adapts, str) else adapts
    named = isinstance(patterns, Sequence) and all(isinstance(p, str) for p in patterns)
    if not named or not patterns:
        raise TypeError(
            f"adapts must be a name or pattern of parameters, or a list of these, got {shown(adapts)}."
        )
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in parameters):
            raise ValueError(
                f"adapts={pattern!r} fits no parameter of the model: {shown(list(parameters))}. "
                "Name a parameter or a module, or use * for any letters, as in '*lora*'."
            )
    fits = [p for name, p in parameters.items() if matches(name, patterns)]
    if not any(p.requires_grad for p in fits):
        raise ValueError(
            f"adapts={adapts!r} fits frozen parameters only, so nothing could adapt. Unfreeze them: "
            "parameter.requires_grad_(True)."
        )
    return tuple(patterns)
