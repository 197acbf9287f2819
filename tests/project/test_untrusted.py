"""Nothing in the sources runs what a file says, or unpacks an archive to where it says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / name for name in ("trlearner", "experiments", "integrations")]
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "cPickle.load", "dill.load", "joblib.load", "marshal.load"),
    *("marshal.loads", "shelve.open", "yaml.load", "eval", "exec", "os.system", "os.popen"),
    *(
        "shutil.unpack_archive",
        "tarfile.open",
        "torch.hub.load",
        "torch.jit.load",
        "pandas.read_pickle",
    ),
}
ALLOWED = {
    # Runs a script of another library that the user names, to show that it trains as before.
    ("integrations/examples/peers.py", "exec"),
}


def calls(text: str) -> list[tuple[str, ast.Call]]:
    """Every call in a source, by the dotted name that it is called by."""
    tree = ast.parse(text)
    return [(ast.unparse(one.func), one) for one in ast.walk(tree) if isinstance(one, ast.Call)]


def faults(name: str, text: str) -> list[str]:
    """What a source does with files that it must not."""
    found = []
    for called, call in calls(text):
        options = {one.arg: ast.unparse(one.value) for one in call.keywords}
        if called in FORBIDDEN and (name, called) not in ALLOWED:
            found.append(f"{name}:{call.lineno} calls {called}")
        if called == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{name}:{call.lineno} calls torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            found.append(f"{name}:{call.lineno} calls np.load without allow_pickle=False")
        if called.endswith((".extractall", ".extract")) or options.get("shell") == "True":
            found.append(f"{name}:{call.lineno} calls {called}")
    return found


@pytest.mark.skipif(not FOLDERS[0].is_dir(), reason="runs beside the sources only")
def test_no_source_trusts_a_file() -> None:
    files = [path for folder in FOLDERS if folder.is_dir() for path in folder.rglob("*.py")]
    assert len(files) > 100
    found = [
        fault
        for path in files
        for fault in faults(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_the_audit_sees_what_it_forbids(text: str) -> None:
    assert len(faults("a.py", text)) == 1
