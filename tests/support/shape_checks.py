"""How the suite checks the library's annotations: by beartype, at a function's first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

# As for type checkers, an int passes for a float.
CHECKED = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
JAXTYPED = jaxtyping.jaxtyped


def install() -> None:
    """Every annotation of the library becomes a check; to be called before anything imports it."""
    jaxtyping.install_import_hook("trlearner", "shape_checks.checked")
    jaxtyping.jaxtyped = outer  # which the hook writes above every function


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked.

    Writing the checks of one function takes a millisecond, and the library has a thousand functions, of
    which a process calls few: each gets its checks at its first call.
    """
    made: list[Callable[..., Any]] = []

    def check(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(CHECKED(function))
        return made[0](*args, **kwargs)

    return check


def outer(*given: Any, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, which leaves nested functions as they are.

    A nested function is made anew at every call of the outer one, and so would be its checks. `mypy`
    checks its types; it names no axes, as test_shape_checks.py sees to.
    """

    def decorate(function: Any) -> Any:
        if "<locals>" in getattr(function, "__qualname__", ""):
            return function
        return JAXTYPED(function, typechecker=typechecker)

    return decorate(*given) if given else decorate
