"""Arrays come out of pickles of every kind; nothing else comes in."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from trlearner.experiments.data.pickled import load_arrays

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


def test_lists_of_arrays_as_objects(tmp_path):
    path = tmp_path / "a.pkl"
    ragged = np.empty(2, object)
    ragged[:] = [IMAGES[0], LABELS[0]]
    path.write_bytes(pickle.dumps(ragged))
    found = load_arrays(path)
    np.testing.assert_array_equal(np.asarray(found[1]), LABELS[0])


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
        (b"cnumpy\nndarray\n(I1\ntR.", "'str' object is not callable"),
        (b"cnumpy\ndtype\n(S'O,i4'\ntR.", "it asks for the dtype 'O,i4', which is no plain one"),
        (
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'12345678'\ntR.",
            "cannot create an OBJECT array from memory buffer",
        ),
        (b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.", "it asks for the codec 'zip'"),
        (pickle.dumps(IMAGES)[:60], "must be a pickle of numpy arrays"),
        (b"", "Ran out of input"),
        (b"hello", "must be a pickle of numpy arrays"),
    ],
)
def test_what_is_refused(tmp_path, data, said):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said):
        load_arrays(path)
