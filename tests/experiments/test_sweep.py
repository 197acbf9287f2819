import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fake_run
import psutil
import pytest
from trlearner.experiments.data.progress import Standing, Tally
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import claim, grid, sweep, worker

import trlearner


def configs(seeds):
    return grid.expand(Config("fake/chain"), {"seed": range(seeds)})


def undisturbed(root, seeds):
    """What the runs find when nothing happens to them."""
    for config in configs(seeds):
        assert worker.attempt(config, root / config.problem / config.hash(), fake_run.run) == "done"
    return fake_run.results(root)


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """A torch that is loaded at once, and does nothing: sweeps only set its threads."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "torch.py").write_text("def set_num_threads(threads): pass")
    (folder / "trlearner").mkdir()
    path = f"__path__ = {list(trlearner.__path__)}"
    (folder / "trlearner" / "__init__.py").write_text(path)
    return str(folder)


def begin(root, seeds, modules="", **settings):
    """A sweep in a process of its own."""
    given = {"vary": {"seed": list(range(seeds))}, **settings}
    return subprocess.Popen(
        [sys.executable, fake_run.__file__, str(root), json.dumps(given)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": modules},
    )


def starts(journal):
    return [line.split()[1] for line in journal.read_text().splitlines() if "start" in line]


@pytest.mark.full
def test_a_sweep_does_what_is_missing_and_tells_what_failed(tmp_path, capsys):
    root, journal = tmp_path / "runs", tmp_path / "journal"
    expected = undisturbed(tmp_path / "alone", 3)
    doing = partial(fake_run.run, journal=str(journal))
    how = sweep.How(workers=2)
    assert sweep.ablate(configs(3), partial(doing, fails=(1,)), root, how) == 1
    printed = capsys.readouterr().out
    assert "2 of 3 runs are done." in printed
    [told] = re.findall(r"1 failed; the same command tries them again:\n  (.*?): (.*)\n", printed)
    assert told[1] == "RuntimeError: seed 1 is bad luck"
    assert "Traceback" in Path(told[0]).read_text()
    journal.unlink()
    assert sweep.ablate(configs(3), doing, root, how) == 0
    assert "3 of 3 runs are done." in capsys.readouterr().out
    assert starts(journal) == [configs(3)[1].hash()]
    assert fake_run.results(root) == expected


def test_two_sweeps_in_one_folder_share_the_runs(tmp_path, light):
    root, journal = tmp_path / "runs", tmp_path / "journal"
    settings = {"run": {"journal": str(journal), "pause": 0.1}, "how": {"workers": 1}}
    both = [begin(root, 3, light, **settings) for _ in range(2)]
    said = [one.communicate(timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert all("3 of 3 runs are done." in text for text in said)
    assert sorted(starts(journal)) == sorted(one.hash() for one in configs(3))
    assert fake_run.results(root) == undisturbed(tmp_path / "alone", 3)


def test_interrupted_it_saves_checkpoints_and_says_how_to_go_on(tmp_path, light):
    root, journal = tmp_path / "runs", tmp_path / "journal"
    run = {"journal": str(journal), "pause": 0.1}
    process = begin(root, 3, light, run=run, how={"workers": 1})
    wait_for(lambda: journal.exists())
    time.sleep(0.15)  # after one step, of which there is no regular checkpoint yet
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 of 3 runs are done. Go on with:\n" in said
    command = said.strip().splitlines()[-1].strip()
    assert command.startswith(sys.executable)
    assert str(root) in command
    [checkpoint] = root.rglob("checkpoint.pt")
    assert 1 <= json.loads(checkpoint.read_text())["step"] < 3
    assert not claim.held(checkpoint.parent)
    assert worker.attempt(configs(1)[0], checkpoint.parent, fake_run.run) == "done"
    assert undisturbed(tmp_path / "alone", 1).items() <= fake_run.results(root).items()


def test_workers_of_a_killed_sweep_stop(tmp_path, light):
    root, journal = tmp_path / "runs", tmp_path / "journal"
    process = begin(root, 1, light, run={"journal": str(journal), "pause": 0.1})
    wait_for(lambda: journal.exists())
    process.kill()
    process.communicate()
    [folder] = (root / "fake" / "chain").glob("[!.]*")
    wait_for(lambda: not claim.held(folder))
    assert not worker.finished(folder)
    assert "the sweep is gone" in (folder / "log.txt").read_text()


def kill(process, with_workers):
    victims = psutil.Process(process.pid).children(recursive=True) if with_workers else []
    process.kill()
    for victim in victims:  # those that are left see that the sweep is gone
        victim.kill()
    process.communicate()


@pytest.mark.full
@pytest.mark.parametrize(
    ("kills", "real"), [(3, False), pytest.param(20, True, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(tmp_path, light, kills, real):
    chance, root, seeds = random.Random(kills), tmp_path / "runs", 8
    settings = {"run": {"pause": 0.05}, "how": {"workers": 2}}
    modules, longest = ("", 5.0) if real else (light, 1.2)
    for _ in range(kills):
        process = begin(root, seeds, modules, **settings)
        time.sleep(chance.uniform(longest / 4, longest))
        kill(process, with_workers=chance.random() < 0.5)
    process = begin(root, seeds, modules, **settings)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert fake_run.results(root) == undisturbed(tmp_path / "alone", seeds)


def dying(config, folder):
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """A pool whose processes die."""

    slots = 1

    def __init__(self):
        self.keys = []
        self.starts = 0

    def __len__(self):
        return len(self.keys)

    def start(self, key, config, folder):
        self.keys.append(key)
        self.starts += 1

    def wait(self, seconds):
        return [(self.keys.pop(), "lost")]

    def stop(self, patience=60.0):
        pass


def test_a_run_that_kills_its_process_is_given_up(tmp_path):
    runs, pool = sweep.Sweep(configs(1), tmp_path, stale=600), Dying()
    with Tally() as tally:
        runs.drive(pool, tally)
    assert pool.starts == 2
    [(path, text)] = runs.failures()
    assert "out of memory?" in text
    assert path.exists()


def test_a_failure_elsewhere_is_not_repeated(tmp_path):
    [config] = configs(1)
    runs = sweep.Sweep([config], tmp_path, stale=600)
    folder = runs.folders[config.hash()]
    worker.fail(folder, "a machine without luck\n")
    runs.drive(Dying(), Tally())
    assert [text for _, text in runs.failures()] == ["a machine without luck"]
    assert not sweep.Sweep([config], tmp_path, stale=600).failed, "a new sweep tries again"


def test_leftovers_of_a_finished_run_are_removed(tmp_path):
    [config] = configs(1)
    folder = tmp_path / config.problem / config.hash()
    before = undisturbed(tmp_path, 1)
    (folder / "checkpoint.pt").touch()
    (folder / "claim.4").write_text('{"released": true}')
    assert sweep.ablate([config], dying, tmp_path) == 0
    assert fake_run.results(tmp_path) == before


def test_a_run_without_a_result_has_failed(tmp_path):
    assert worker.attempt(configs(1)[0], tmp_path, lambda config, folder: None) == "failed"
    assert "ended without a result.json" in (tmp_path / "error.txt").read_text()


def test_a_run_may_end_with_another_file(tmp_path):
    config, calls = configs(1)[0], []

    def remembering(config, folder):
        calls.append(folder)
        (folder / "memory.json").write_text("{}")

    (tmp_path / "result.json").write_text("{}")
    for _ in range(2):
        assert worker.attempt(config, tmp_path, remembering, result="memory.json") == "done"
    assert calls == [tmp_path]


@pytest.mark.full
def test_a_sweep_goes_on_until_every_run_has_that_file(tmp_path, capsys):
    assert sweep.ablate(configs(2), fake_run.run, tmp_path) == 0
    how = sweep.How(workers=1)
    assert sweep.ablate(configs(2), fake_run.remember, tmp_path, how, result="memory.json") == 0
    assert "2 of 2 runs are done." in capsys.readouterr().out
    assert len(list(tmp_path.rglob("memory.json"))) == 2


def test_a_taken_over_worker_stops_at_once(tmp_path, monkeypatch):
    """Two must not write in one folder."""
    monkeypatch.setattr(claim, "BEAT", 0.01)
    codes = []
    monkeypatch.setattr(worker.os, "_exit", lambda code: codes.append(code))

    def robbed(config, folder):
        shutil.copy(folder / "claim.0", folder / "claim.1")
        wait_for(lambda: codes)

    worker.attempt(configs(1)[0], tmp_path, robbed)
    assert codes[0] == worker.CODES["busy"]


def test_lines_tell_how_things_stand(capsys):
    tally = Tally()
    tally.show(Standing(done=1, failed=0, running=2, total=5))
    tally.show(Standing(done=1, failed=0, running=2, total=5))
    tally.show(Standing(done=2, failed=1, running=2, total=5))
    tally.show(Standing(done=2, failed=1, running=0, total=5))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1/5 runs done, 2 at work"
    assert lines[1] == "2/5 runs done, 1 failed, 2 at work, about 0 s left"
    assert "waiting for 2 that others are at" in lines[2]
    assert len(lines) == 3


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
