"""What is checked at run time, and that nothing that names axes goes unchecked."""

import ast
import os
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import Float
from shape_checks import checked, outer
from torch import Tensor, zeros

import trlearner

SOURCES = sorted(Path(trlearner.__file__).parent.rglob("*.py"))
AXES = {name for name in dir(jaxtyping) if name[0].isupper()}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def nested_with_axes(source: str) -> list[str]:
    """The nested functions whose annotations are of jaxtyping."""
    found = []
    for around in ast.walk(ast.parse(source)):
        inside = ast.walk(around) if isinstance(around, FUNCTIONS) else ()
        for inner in inside:
            if inner is around or not isinstance(inner, FUNCTIONS):
                continue
            each = [
                inner.returns,
                *(a.annotation for a in ast.walk(inner.args) if isinstance(a, ast.arg)),
            ]
            names = {n.id for a in each if a for n in ast.walk(a) if isinstance(n, ast.Name)}
            if names & AXES:
                found.append(inner.name)
    return found


def scaled(x: Float[Tensor, "rows 2"], by: float) -> Float[Tensor, "rows 2"]:
    return x[:1] if by < 0 else by * x


def test_annotations_are_checked_at_every_call():
    check = outer(scaled, typechecker=checked)
    for _ in range(2):
        assert check(zeros(3, 2), 1).shape == (3, 2)
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters of .*scaled"):
            check(zeros(3, 3), 1.0)
        with pytest.raises(jaxtyping.TypeCheckError, match="return value of .*scaled"):
            check(zeros(3, 2), -1.0)


def test_a_nested_function_is_left_as_it_is():
    def inner(x: int) -> int:
        return x

    assert outer(typechecker=checked)(inner) is inner


@pytest.mark.skipif(os.environ.get("TRLEARNER_TYPECHECK") == "0", reason="switched off by hand")
def test_the_library_is_checked():
    assert jaxtyping.jaxtyped is outer
    assert hasattr(trlearner.relation_matrix, "__wrapped__")


def test_a_nested_function_with_axes_is_found():
    source = "def f():\n    def g(x: {}) -> None: ...\n    return g"
    assert nested_with_axes(source.format("Float[Tensor, 'rows']")) == ["g"]
    assert nested_with_axes(source.format("Tensor")) == []


def test_no_nested_function_names_axes():
    found = {path.name: nested_with_axes(path.read_text("utf-8")) for path in SOURCES}
    found = {name: functions for name, functions in found.items() if functions}
    assert not found, f"nothing would check {found}; make them functions of the module"
