import json
import os
import subprocess
import sys
import threading
import time

import pytest
from trlearner.experiments.runs import claim


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leave(folder, number, **changes):
    """A claim as another process would have left it."""
    holder = {**claim._holder(), **changes}
    (folder / f"claim.{number}").write_text(json.dumps(holder))
    return folder / f"claim.{number}"


def dead_process():
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    return int(process.stdout)


def test_only_one_gets_it(tmp_path):
    mine = claim.acquire(tmp_path)
    assert mine.beat()
    assert claim.held(tmp_path)
    assert claim.acquire(tmp_path) is None
    mine.release()
    assert not claim.held(tmp_path)
    theirs = claim.acquire(tmp_path)
    assert theirs is not None
    assert not mine.beat(), "who comes back late must see that somebody else went on"
    assert names(tmp_path) == ["claim.1"]
    claim.clear(tmp_path)
    assert names(tmp_path) == []


def test_of_many_at_once_only_one_gets_it(tmp_path):
    leave(tmp_path, 7, pid=dead_process())
    for _ in range(30):
        got, start = [], threading.Barrier(8)

        def try_it(got=got, start=start):
            start.wait()
            got.append(claim.acquire(tmp_path))

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = [one for one in got if one is not None]
        assert len(held) <= 1  # none where all stepped back: then the next try gets it
        for one in held:
            assert one.beat()
            one.release()


@pytest.mark.parametrize(
    ("changes", "age", "free"),
    [
        ({}, 10**6, False),  # a process of this machine is asked itself, however long it slept
        ({"pid": "dead"}, 0, True),
        ({"born": "another time"}, 0, True),  # a new process with an old number
        ({"place": "elsewhere"}, 500, False),
        ({"place": "elsewhere"}, 700, True),
        ({"place": "elsewhere", "released": True}, 0, True),
    ],
)
def test_the_dead_are_found_out(tmp_path, changes, age, free):
    if changes.get("pid") == "dead":
        changes = {**changes, "pid": dead_process()}
    path = leave(tmp_path, 0, **changes)
    then = time.time() - age
    os.utime(path, (then, then))
    assert claim.held(tmp_path) == (not free)
    assert (claim.acquire(tmp_path) is not None) == free


@pytest.mark.parametrize("content", ["", '{"host": "a'])
def test_a_claim_whose_holder_died_while_writing_is_void_soon(tmp_path, content):
    path = tmp_path / "claim.0"
    path.write_text(content)
    assert claim.acquire(tmp_path) is None
    then = time.time() - 6
    os.utime(path, (then, then))
    assert claim.acquire(tmp_path) is not None


def test_who_judged_too_early_steps_back(tmp_path, monkeypatch):
    """Another one takes over, and ends, between our look and our claim."""
    stale = leave(tmp_path, 0, pid=dead_process())
    look, looks = claim._last, []

    def last(folder):
        found = look(folder)
        if not looks:
            leave(tmp_path, 2, place="elsewhere")
            stale.unlink()
        looks.append(found)
        return found

    monkeypatch.setattr(claim, "_last", last)
    monkeypatch.setattr(claim, "_abandoned", lambda path, stale, gone=False: path.suffix == ".0")
    assert claim.acquire(tmp_path) is None
    assert names(tmp_path) == ["claim.2"]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux tells")
def test_zombies_are_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    while claim._born(child.pid) is not None:
        time.sleep(0.01)
    assert not claim._alive(child.pid, None) or claim._born(child.pid) is None
    leave(tmp_path, 0, pid=child.pid, born="then")
    assert not claim.held(tmp_path)
    child.wait()
