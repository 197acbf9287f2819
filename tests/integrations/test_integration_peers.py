"""Other libraries' own MAML scripts with our lines in them; from clones, at TRLEARNER_HIGHER and so on."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from trlearner.integrations.examples import peers
from trlearner.integrations.examples.patch import Edit, difference, edited, part
from trlearner.integrations.examples.scripts import SCRIPTS, sources

THEIRS = """\
def train(net):
    for x in data:
        loss = net(x)
        loss.backward()
    step()

def test(net):
    pass
"""

DATA = os.environ.get("TRLEARNER_DATA")
data = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "images" / "omniglot").exists()),
    reason="needs Omniglot: set TRLEARNER_DATA to a folder with images/omniglot in it",
)


@pytest.fixture(params=SCRIPTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def root(name: str) -> Path:
    found = sources(name)
    if found is None:
        variable = f"TRLEARNER_{name.upper()}"
        pytest.skip(
            f"{name}'s wheel is without its {SCRIPTS[name].path}: set {variable} to a clone"
        )
    return found


@pytest.fixture
def _seeded() -> Iterator[None]:
    """The scripts seed everything; nobody else should notice."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


# ---- lines in somebody else's script -------------------------------------------------------------


def test_our_lines_go_where_they_are_told_as_far_in_as_their_neighbours() -> None:
    ours = (
        Edit("for x in data", ("# a", "# b"), "before"),
        Edit("loss.backward()", ("more = 1", "both.backward()"), "instead"),
        Edit("loss = net(x)", ("# c",)),
        Edit("step()", ("# d",), "before"),
        Edit("step()", ("# e",)),
    )
    wanted = """\
def train(net):
    # a
    # b
    for x in data:
        loss = net(x)
        # c
        more = 1
        both.backward()
    # d
    step()
    # e

def test(net):
    pass
"""
    assert edited(THEIRS, ours) == wanted
    assert edited(THEIRS, ()) == THEIRS
    found = difference(part(THEIRS, "def train", "def test"), part(wanted, "def train", "def test"))
    assert (found.added, found.changed) == (6, 1)
    assert found.shown[-3:] == ("+         both.backward()", "+     # d", "+     # e")
    assert "~         more = 1" in found.shown or "+         more = 1" in found.shown


def test_what_is_taken_out_counts_as_changed() -> None:
    found = difference(["a", "b", "c", "d"], ["a", "B", "d", "e"])
    assert (found.added, found.changed, found.shown) == (1, 2, ("~ B", "+ e"))
    assert difference(["a"], ["a"]).shown == ()


@pytest.mark.parametrize(("at", "count"), [("loss", 2), ("optimizer", 0)])
def test_a_script_of_another_version_is_refused(at: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"should have {at!r}, and {count} have. It is of another"):
        edited(THEIRS, (Edit(at, ("x",)),))


# ---- the scripts ---------------------------------------------------------------------------------


def test_three_lines_are_added_to_the_loop_and_one_is_changed_at_most(name: str) -> None:
    """By what we declare; the next test counts what becomes of the script."""
    inside = SCRIPTS[name].inside
    assert sum(len(edit.lines) for edit in inside if edit.where != "instead") <= 3
    instead = [edit for edit in inside if edit.where == "instead"]
    assert len(instead) <= 1 and all(len(edit.lines) == 1 for edit in instead)


def test_the_script_differs_by_so_many_lines(name: str, root: Path) -> None:
    loop, whole = SCRIPTS[name].lines(root)
    print(f"{name}: {loop.added} added, {loop.changed} changed, {whole.added} in all")
    assert 1 <= loop.added <= 3 and loop.changed <= 1
    assert whole.changed == loop.changed  # setting up only adds
    assert 0 < whole.added - loop.added <= 6
    theirs = (root / SCRIPTS[name].path).read_text("utf-8").splitlines()
    kept = difference(theirs, SCRIPTS[name].source(root, True).splitlines())
    assert kept.changed == loop.changed + len(SCRIPTS[name].device)


@data
@pytest.mark.usefixtures("_seeded")
def test_without_the_term_a_script_trains_as_it_did(name: str, root: Path) -> None:
    """Parameters and statistics after some meta-steps, to the last bit; with the term they differ."""
    plain, ours, more = (peers.run(name, root, lam, steps=2, tests=1) for lam in (None, 0.0, 0.1))
    assert plain.model and ours.model and more.model
    states = [run.model.state_dict() for run in (plain, ours, more)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not all(torch.equal(states[0][n], states[2][n]) for n in states[0])
    assert plain.losses == ours.losses and plain.test == ours.test
    assert len(plain.losses) == len(plain.accuracies) == 2


@data
@pytest.mark.slow
@pytest.mark.usefixtures("_seeded")
def test_with_the_term_a_script_trains(name: str, root: Path) -> None:
    """Test tasks are the same ones, so that what is between the two runs is training."""
    before, after = (peers.run(name, root, 0.1, steps) for steps in (1, 60))
    first, last = (
        torch.tensor(after.losses[part]).mean() for part in (slice(15), slice(-15, None))
    )
    print(f"{name}: loss {first:.3f} to {last:.3f}, test {before.test:.1f} to {after.test:.1f} %")
    assert last < 0.95 * first
    assert after.test > before.test + 5


@pytest.mark.usefixtures("_seeded")
def test_the_command_shows_our_lines_and_trains(
    name: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lams = []

    def run(name: str, root: Path, lam: float | None, steps: int) -> peers.Run:
        lams.append(lam)
        return peers.Run([1.0] * steps, [50.0] * steps, 60.0)

    monkeypatch.setattr(peers, "run", run)
    peers.main([name, "--sources", str(root), "--steps", "5"])
    said = capsys.readouterr().out
    assert "in the loop, 2 added, 1 changed:\n" in said and "tasks.add(adapted(" in said
    assert lams == [None, 0.0, 0.1]
    assert "λ = 0.1            train  50.0  50.0  50.0  50.0  50.0 %   test 60.0 %" in said


def test_the_command_needs_a_clone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRLEARNER_HIGHER", raising=False)
    with pytest.raises(SystemExit):
        peers.main(["higher"])
    assert "--sources: where examples/maml-omniglot.py of a clone" in capsys.readouterr().err
