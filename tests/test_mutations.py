"""The suite notices when a formula is changed: each mutant of the sources must fail some test."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import trlearner

TESTS = pathlib.Path(__file__).parent
SOURCE = pathlib.Path(trlearner.__file__).parent
SUITE = [
    "test_relation.py",
    "test_consistency.py",
    "test_engines.py",
    "test_regularizer.py",
]

MUTANTS = {
    "relation term dropped": (
        "meta_step.py",
        "own + parts.lam * term.loss",
        "own + 0 * term.loss",
    ),
    "task term dropped": ("meta_step.py", "own + parts.lam * term.loss", "parts.lam * term.loss"),
    "lambda dropped": ("meta_step.py", "own + parts.lam * term.loss", "own + term.loss"),
    "w_ij swapped for w_ji": (
        "consistency.py",
        "share = weights.T.reshape(*weights.T",
        "share = weights.reshape(*weights",
    ),
    "diagonal included": (
        "consistency.py",
        "counts = ~torch.eye(len(relations), dtype=torch.bool",
        "counts = torch.ones(len(relations), len(relations), dtype=torch.bool",
    ),
    "weights not normalized": (
        "consistency.py",
        "return raw / raw.sum(1, keepdim=True).clamp(min=FLOOR)",
        "return raw",
    ),
    "relu dropped": ("consistency.py", "relations.relu() + FLOOR", "relations + FLOOR"),
    "floor dropped": ("consistency.py", "relations.relu() + FLOOR", "relations.relu()"),
    "temperature dropped": (
        "consistency.py",
        "(relations - most) / temperature",
        "(relations - most)",
    ),
    "heads not averaged": (
        "relation.py",
        "head_relations(embeddings, weight).mean(0)",
        "head_relations(embeddings, weight)[0]",
    ),
    "one norm dropped": ("relation.py", "return units @ units.mT", "return units @ views.mT"),
    "relation detached": (
        "meta_step.py",
        "relations, options.normalize",
        "relations.detach(), options.normalize",
    ),
    "own loss of other task": (
        "meta_step.py",
        "models.losses(loss_fn, mixed, query)",
        "models.losses(loss_fn, mixed.roll(1, 0), query)",
    ),
    "first order everywhere": (
        "engines/one_task.py",
        "create_graph=not first_order",
        "create_graph=False",
    ),
    "second order everywhere": (
        "engines/one_task.py",
        "create_graph=not first_order",
        "create_graph=True",
    ),
    "mask ignored in the loss": (
        "loss.py",
        "torch.where(mask, each, 0.0).sum() / mask.sum()",
        "each.mean()",
    ),
    "logits mixed as logits": (
        "consistency.py",
        "return torch.logsumexp(logs + _log(share), dim=0)",
        "return (share * logs).sum(0)",
    ),
    "alignment transposed": (
        "consistency.py",
        "_log(alignment)[:, :, None]",
        "_log(alignment.mT)[:, :, None]",
    ),
    "step sign": ("learners/protocol.py", "value - self.rate", "value + self.rate"),
}


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
            "PYTHONPATH": f"{package}{os.pathsep}{TESTS}",
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


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name: str, tmp_path: pathlib.Path) -> None:
    file, old, new = MUTANTS[name]
    path = copy(tmp_path) / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} no longer holds {old!r} once: update the mutant"
    path.write_text(text.replace(old, new))
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
