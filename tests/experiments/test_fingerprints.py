import sys

import numpy as np
import pytest
from trlearner.experiments.data import fingerprints as module
from trlearner.experiments.data.fingerprints import fingerprints

ETHANOL, BENZENE, ASPIRIN = "CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O"


def test_what_is_too_long_for_rdkit_does_not_reach_it(monkeypatch):
    monkeypatch.setattr(module, "_rdkit", lambda: pytest.fail("it was reached"))
    with pytest.raises(ValueError, match="a SMILES must have at most 2000 characters, got 20000"):
        fingerprints([ETHANOL, "C" * 20_000])


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path))


def test_without_rdkit_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'trlearner\[drugs\]'"):
        fingerprints([ETHANOL])


@pytest.mark.parametrize("bits", [0, -8, 1023])
def test_bits_fill_bytes(bits):
    with pytest.raises(ValueError, match="multiple of 8.*1024 or 2048"):
        fingerprints([ETHANOL], bits=bits)


@pytest.mark.parametrize(("radius", "bits"), [(2, 1024), (2, 2048), (3, 64)])
def test_bits_are_those_of_rdkit(radius, bits):
    chem = pytest.importorskip("rdkit.Chem")
    generators = pytest.importorskip("rdkit.Chem.rdFingerprintGenerator")
    generator = generators.GetMorganGenerator(radius=radius, fpSize=bits)
    found = fingerprints([ETHANOL, ASPIRIN], radius, bits)
    assert found.packed.dtype == np.uint8
    for i, smiles in enumerate([ETHANOL, ASPIRIN]):
        expected = set(generator.GetFingerprint(chem.MolFromSmiles(smiles)).GetOnBits())
        assert set(np.flatnonzero(np.unpackbits(found.packed[i])).tolist()) == expected


def test_one_compound_however_it_is_written():
    pytest.importorskip("rdkit")
    found = fingerprints([ETHANOL, BENZENE, "OCC", "C1=CC=CC=C1", ETHANOL])
    assert found.compound.tolist() == [0, 1, 0, 1, 0]
    assert found.packed.shape == (2, 128)


def test_mirror_images_are_two_compounds_with_the_same_bits():
    pytest.importorskip("rdkit")
    found = fingerprints(["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"])
    assert found.compound.tolist() == [0, 1]
    np.testing.assert_array_equal(*found.packed)


def test_what_rdkit_cannot_read_is_marked_and_makes_no_noise(capfd):
    pytest.importorskip("rdkit")
    found = fingerprints(["nonsense", ETHANOL, "", "C1CC", "c1cccc1"])
    assert found.compound.tolist() == [-1, 0, -1, -1, -1]
    assert found.unreadable() == [0, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_nothing_readable_is_an_empty_table():
    pytest.importorskip("rdkit")
    assert fingerprints(["nonsense"]).packed.shape == (0, 128)


def test_the_second_time_they_come_from_the_disk(monkeypatch):
    pytest.importorskip("rdkit")
    first = fingerprints([ETHANOL, "nonsense", ASPIRIN])
    monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
    again = fingerprints([ETHANOL, "nonsense", ASPIRIN])
    np.testing.assert_array_equal(first.packed, again.packed)
    np.testing.assert_array_equal(first.compound, again.compound)


@pytest.mark.parametrize(
    ("smiles", "options"),
    [
        ([ASPIRIN, ETHANOL], {}),  # order counts
        ([ETHANOL], {}),
        ([ETHANOL, ASPIRIN], {"bits": 2048}),
        ([ETHANOL, ASPIRIN], {"radius": 3}),
    ],
)
def test_other_compounds_or_settings_are_computed(smiles, options, tmp_path):
    pytest.importorskip("rdkit")
    fingerprints([ETHANOL, ASPIRIN])
    fingerprints(smiles, **options)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_rdkit_is_not_trusted_with_old_files(monkeypatch, tmp_path):
    rdkit = pytest.importorskip("rdkit")
    fingerprints([ETHANOL])
    monkeypatch.setattr(rdkit, "__version__", "1999.1.1")
    fingerprints([ETHANOL])
    assert len(list(tmp_path.iterdir())) == 2
