"""A run that trains nothing, but keeps files as real ones do: a checkpoint, lines of metrics, a result.

As a program it is a sweep of such runs: ``python fake_run.py ROOT SETTINGS``, where the settings are JSON.
"""

import fcntl
import hashlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

STEPS = 12
ASIDE = ("timing.json", "log.txt")
"""What may differ between two runs of the same config."""


def run(config, folder, *, journal=None, pause=0.02, fails=()):
    """Steps through a chain of hashes; the result tells every step."""
    with open(folder.parent / f".{folder.name}.alone", "w") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it, however we end
        except BlockingIOError:
            (folder.parent / f"collision-{folder.name}").touch()
        note(journal, f"start {folder.name} {os.getpid()}")
        if config.seed in fails:
            raise RuntimeError(f"seed {config.seed} is bad luck")
        steps(config, folder, pause)
        note(journal, f"end {folder.name} {os.getpid()}")


def remember(config, folder):
    """As a run that is finished already does with a memory."""
    assert (folder / "result.json").exists()
    replace(folder / "memory.json", "{}")


def steps(config, folder, pause):
    checkpoint = folder / "checkpoint.pt"
    state = {"step": 0, "chain": [config.hash()]}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
    try:
        while state["step"] < STEPS:
            time.sleep(pause)
            link = hashlib.sha256(state["chain"][-1].encode()).hexdigest()
            # In one assignment: an interrupt finds a state before a step, or one after it.
            state = {"step": state["step"] + 1, "chain": [*state["chain"], link]}
            if state["step"] % 3 == 0:
                replace(checkpoint, json.dumps(state))
                replace(folder / "metrics.jsonl", "\n".join(state["chain"]))
    except KeyboardInterrupt:
        replace(checkpoint, json.dumps(state))
        raise
    replace(folder / "metrics.jsonl", "\n".join(state["chain"]))
    replace(folder / "timing.json", json.dumps({"now": time.time()}))
    replace(folder / "result.json", json.dumps(state))
    checkpoint.unlink(missing_ok=True)


def replace(path, text):
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def note(journal, text):
    if journal is not None:
        with open(journal, "a") as file:
            file.write(text + "\n")


def results(root):
    """All that must not differ, by path; halves of files that nobody reads are left out."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ASIDE and not path.name.startswith(".")
    }


def main(root, settings):
    import fake_run  # by name, as workers will
    from trlearner.experiments.presets.config import Config
    from trlearner.experiments.runs import grid, sweep

    configs = grid.expand(Config("fake/chain"), settings.get("vary", {"seed": [0, 1]}))
    doing = partial(fake_run.run, **settings.get("run", {}))
    return sweep.ablate(configs, doing, Path(root), sweep.How(**settings.get("how", {})))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
