"""Arrays come out of pickles of every kind; nothing else comes in."""

import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from trlearner.experiments.data import pickled
from trlearner.experiments.data.pickled import UnsafePickle, load_arrays

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
LABELS = np.arange(18).reshape(2, 3, 3) / 7
# (np.array([0, 1, 233], "u1"), [0.5]) in the form that Python 2 gave it: bytes are its str, opcode U.
PYTHON_2 = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04"
    b"\x87q\x05Rq\x06(K\x01K\x03\x85q\x07cnumpy\ndtype\nq\x08U\x02u1q\tK\x00K\x01\x87q\nRq\x0b(K\x03U\x01|"
    b"q\x0cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\rb\x89U\x03\x00\x01\xe9q\x0etq\x0fb]q\x10G?\xe0\x00"
    b"\x00\x00\x00\x00\x00a\x86q\x11."
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_all_protocols(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    big = LABELS.astype(">f4")
    value = (IMAGES, [LABELS[0], LABELS[1].tolist()], {"big": big, "n": np.float64(1.5)}, IMAGES.T)
    path.write_bytes(pickle.dumps(value, protocol))
    images, labels, more, fortran = load_arrays(path)
    np.testing.assert_array_equal(np.asarray(images), IMAGES)
    np.testing.assert_array_equal(np.asarray(labels), LABELS)
    np.testing.assert_array_equal(np.asarray(more["big"]), big)
    np.testing.assert_array_equal(np.asarray(fortran), IMAGES.T)
    assert more["n"] == 1.5
    assert images.dtype == np.uint8


def test_booleans_and_empty_arrays(tmp_path):
    path = tmp_path / "a.pkl"
    empty = np.empty((0, 3), np.float32)
    path.write_bytes(
        pickle.dumps([np.array([True, False]), empty]).replace(b"\x01\x00", b"\x07\x00")
    )
    booleans, nothing = load_arrays(path)
    assert booleans.tolist() == [True, False] and booleans.view("u1").tolist() == [1, 0]
    assert nothing.shape == (0, 3) and nothing.dtype == np.float32


def test_python_2(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(PYTHON_2)
    array, numbers = load_arrays(path)
    assert array.tolist() == [0, 1, 233]
    assert numbers == [0.5]


class Evil:
    """Makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.unchecked
def test_an_evil_pickle_does_nothing(tmp_path):
    path, target = tmp_path / "evil.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps([IMAGES, Evil(target)]))
    with pytest.raises(
        ValueError, match=r"evil.pkl .*it asks for (_?io).open, which no array needs"
    ):
        load_arrays(path)
    assert not target.exists()
    # The same pickle does make the file where one trusts it.
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"])
    assert target.exists()


def filled(shape, content):
    """A pickle of an array of bytes, which is filled with these two."""
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
    return start + shape + b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntRI00\n" + content + b"tb."


def test_a_filled_array_is_what_the_tests_of_refusals_break(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(filled(b"(I3\nt", b"U\x03abc"))
    assert load_arrays(path).tolist() == [97, 98, 99]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "it asks for os.system, which no array needs"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "it asks for __builtin__.eval"),
        (b"cnumpy\nfromfile\n.", "it asks for numpy.fromfile"),
        (
            b"cnumpy.core.multiarray\nscalar.func\n.",
            "it asks for numpy.core.multiarray.scalar.func",
        ),
        # An array over any memory, an array of pointers, a dtype that takes bytes for pointers.
        (b"cnumpy\nndarray\n(I1\ntR.", "it calls 'numpy.ndarray', which is no function"),
        (b"cnumpy\ndtype\n(S'O,i4'\ntR.", "it asks for the dtype 'O,i4', which is no plain number"),
        (
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'12345678'\ntR.",
            "it asks for the dtype 'O8', which is no plain number",
        ),
        (pickle.dumps(np.array([[1], None], object)), "it asks for the dtype 'O8'"),
        (pickle.dumps(np.array(["text"])), "it asks for the dtype 'U4'"),
        (pickle.dumps(np.float64), "it asks for numpy.float64"),
        (pickle.dumps(np.dtype("f8")), "it holds a dtype or a function by itself"),
        # Functions of ours that a pickle would change, or call as a class calls its own.
        (b"c_codecs\nencode\n(N}S'a'\nS'b'\nstb.", "it changes the inside of a _Function"),
        (b"c_codecs\nencode\n]R.", "it calls a function with something else than a tuple"),
        (filled(b"(I5\nt", b"U\x03abc"), r"the shape \(5,\) needs 5 bytes .* got 3 bytes"),
        (filled(b"(I-1\nt", b"U\x03abc"), r"it gives an array the shape \(-1,\)"),
        (filled(b"(I4611686018427387904\nI4\nt", b"U\x00"), "needs 18446744073709551616 bytes"),
        (filled(b"(I3\nt", b"](I1\nI2\nI3\ne"), "something else than bytes of a dtype"),
        (filled(b"(" + b"I1\n" * 40 + b"t", b"U\x01a"), "needs 1 bytes in the order C or F"),
        (filled(b"N", b"U\x03abc"), "it gives an array the shape None"),
        # Memory that a file of a few bytes has no claim to.
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a.", "must be a pickle"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b"a.", "must be a pickle"),
        (b"\x80\x04Nr\xff\xff\xff\xfe" + b"0.", "must be a pickle"),
        # Lists that hold each other 2 ** 40 times, also as a key, whose hash would take as long.
        (
            b"]" + b"q\x00(h\x00h\x00l" * 40 + b".",
            "nested too deeply, or hold each other too often",
        ),
        (
            b"]" + b"q\x00(h\x00h\x00l" * 20 + b".",
            "nested too deeply, or hold each other too often",
        ),
        (b"}N" + b"2\x86" * 40 + b"Ns.", "it has a key of the type tuple"),
        (b"]q\x00h\x00a.", "nested too deeply"),
        (b"Nq\x00(S'a'\nI1\nS'b'\nd.", "argument 2 is shorter"),
        (b"]S'a'\nI1\ns.", "it sets a value by key outside of a dict"),
        (b"\x8f(N" + b"2\x86" * 40 + b"\x90.", "it has a key of the type tuple"),
        (b"](I1\n\x90.", "it adds to something else than a set"),
        (b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.", "it asks for the codec 'zip'"),
        (pickle.dumps(IMAGES)[:60], "must be a pickle of numeric numpy arrays"),
        (b"", "EOFError. It was not loaded"),
        (b"hello", "must be a pickle of numeric numpy arrays"),
    ],
)
def test_what_is_refused(tmp_path, data, said):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(UnsafePickle, match=said):
        load_arrays(path)


FUZZ = """
import importlib.util, pickle, random, sys
import numpy as np

spec = importlib.util.spec_from_file_location("pickled", sys.argv[1])
pickled = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pickled)
count, chance = int(sys.argv[2]), random.Random(0)
objects = np.empty(3, object)
objects[:] = [1, "a", [2]]
value = [np.arange(4, dtype=">f4"), (np.eye(2).T, {"a": np.int64(3)}, [True, None, 0.5])]
seeds = [pickle.dumps(value, p) for p in range(6)] + [pickle.dumps(objects, p) for p in (0, 2, 4)]

def mutant():
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, what = chance.randrange(len(content) + 1), chance.randrange(5)
        if what == 0:
            content[at : at + 1] = bytes([chance.randrange(256)])
        elif what == 1:
            content[at : at + 1] = chance.choice((b"", b"\\xff", b"\\x7f", b"\\x00", b"0", b"R", b"b", b"s"))
        elif what == 2:
            content[at:at] = content[at - 9 : at + chance.randrange(9)]
        elif what == 3:
            other = chance.choice(seeds)
            content[at:] = other[chance.randrange(len(other)) :]
        else:
            del content[at : at + chance.randrange(8)]
    return bytes(content)

def use(value):
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "biuf", value.dtype
        return repr(value.sum() if value.dtype.kind != "f" else value.tobytes())
    if isinstance(value, (list, tuple)):
        return [use(one) for one in value]
    if isinstance(value, dict):
        return {key: use(one) for key, one in value.items()}
    assert value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)), value
    return repr(value)

good = bad = 0
for _ in range(count):
    try:
        use(pickled.loads(mutant(), "a mutant"))
        good += 1
    except pickled.UnsafePickle:
        bad += 1
print(good, bad)
"""


@pytest.mark.full
def test_mutants_are_read_or_refused():
    count = 20_000
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, pickled.__file__, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    good, bad = map(int, done.stdout.split())
    assert good + bad == count and good > count / 100 and bad > count / 10
