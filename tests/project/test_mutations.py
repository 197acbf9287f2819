"""The suite notices when a formula is changed: each mutant of the sources must fail some test."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import trlearner

TESTS = pathlib.Path(__file__).parents[1]
SOURCE = pathlib.Path(trlearner.__file__).parent
SUITE = [
    "relations/test_relation.py",
    "relations/test_consistency.py",
    "engines/test_engines.py",
    "regularizer/test_regularizer.py",
]

MUTANTS = {
    "relation term dropped": (
        "own + parts.lam * term.loss",
        "own + 0 * term.loss",
    ),
    "task term dropped": (
        "own + parts.lam * term.loss",
        "parts.lam * term.loss",
    ),
    "lambda dropped": (
        "own + parts.lam * term.loss",
        "own + term.loss",
    ),
    "w_ij swapped for w_ji": (
        "share = weights.T.reshape(*weights.T",
        "share = weights.reshape(*weights",
    ),
    "diagonal included": (
        "counts = ~torch.eye(len(relations), dtype=torch.bool",
        "counts = torch.ones(len(relations), len(relations), dtype=torch.bool",
    ),
    "weights not normalized": (
        "return raw / raw.sum(1, keepdim=True).clamp(min=FLOOR)",
        "return raw",
    ),
    "relu dropped": (
        "relations.relu() + FLOOR",
        "relations + FLOOR",
    ),
    "floor dropped": (
        "relations.relu() + FLOOR",
        "relations.relu()",
    ),
    "temperature dropped": (
        "(relations - most) / temperature",
        "(relations - most)",
    ),
    "heads not averaged": (
        "head_relations(embeddings, weight).mean(0)",
        "head_relations(embeddings, weight)[0]",
    ),
    "one norm dropped": (
        "return units @ units.mT",
        "return units @ views.mT",
    ),
    "relation detached": (
        "if few else None\n    weights = weights_of(relations, options",
        "if few else None\n    weights = weights_of(relations.detach(), options",
    ),
    "own loss of other task": (
        "models.losses(loss_fn, mixed, query)",
        "models.losses(loss_fn, mixed.roll(1, 0), query)",
    ),
    "first order everywhere": (
        "create_graph=not first_order",
        "create_graph=False",
    ),
    "second order everywhere": (
        "create_graph=not first_order",
        "create_graph=True",
    ),
    "mask ignored in the loss": (
        "torch.where(mask, each, 0.0).sum() / mask.sum()",
        "each.mean()",
    ),
    "logits mixed as logits": (
        "return torch.logsumexp(logs + log_weights(share), dim=0)",
        "return (share * logs).sum(0)",
    ),
    "alignment transposed": (
        "log_weights(alignment)[:, :, None]",
        "log_weights(alignment.mT)[:, :, None]",
    ),
    "step sign": (
        "torch.sub(value, gradient, alpha=size)",
        "torch.add(value, gradient, alpha=size)",
    ),
}
"""What is written in the place of what."""


def run(package: pathlib.Path) -> subprocess.CompletedProcess[str]:
    suite = [str(TESTS / name) for name in SUITE]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    return subprocess.run(
        [*command, "-c", os.devnull, "-W", "ignore", f"--rootdir={package}", *suite],
        cwd=package,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (package, TESTS, TESTS / "support"))),
            "TRLEARNER_TYPECHECK": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def copy(tmp_path: pathlib.Path) -> pathlib.Path:
    target = tmp_path / "trlearner"
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.mark.slow
def test_unchanged_copy_passes(tmp_path: pathlib.Path) -> None:
    copy(tmp_path)
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:]


def place(package: pathlib.Path, old: str) -> pathlib.Path:
    """The one file of the library that holds a text once."""
    found = [path for path in package.rglob("*.py") if old in path.read_text("utf-8")]
    assert len(found) == 1, f"{old!r} must stand in one file, stands in {found}: update the mutant"
    assert found[0].read_text("utf-8").count(old) == 1, f"{old!r} stands more than once"
    return found[0]


@pytest.mark.parametrize("name", MUTANTS)
def test_what_a_mutant_replaces_is_there(name: str) -> None:
    place(SOURCE, MUTANTS[name][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name: str, tmp_path: pathlib.Path) -> None:
    old, new = MUTANTS[name]
    path = place(copy(tmp_path), old)
    path.write_text(path.read_text().replace(old, new))
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
