"""How the suite checks annotations: by beartype, at a function's first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beartype

# As for type checkers, an int passes for a float.
CHECKED = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked, as `jaxtyping.install_import_hook` wants it.

    Writing the checks of one function takes a millisecond. The library has a thousand functions, of which a
    process calls few: each gets its checks when it is called. A nested function is made anew at every call of
    the outer one, so it gets none; `mypy` checks its types, and it names no axes (test_shape_checks.py).
    """
    if "<locals>" in function.__qualname__:
        return function
    made: list[Callable[..., Any]] = []

    def check(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(CHECKED(function))
        return made[0](*args, **kwargs)

    return check
