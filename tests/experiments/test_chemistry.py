import numpy as np
import pytest
import torch
from trlearner.experiments.data import chemistry


@pytest.fixture(scope="module")
def drawn():
    return chemistry.draw()


def assay(table, name):
    """Bits and centred activities of an assay."""
    i = table.names.index(name)
    rows = slice(int(table.starts()[i]), int(table.starts()[i] + table.size[i]))
    bits = np.unpackbits(table.bits[table.compound[rows]].numpy(), axis=1).astype(float)
    y = table.value[rows].double().numpy()
    return bits, y - y.mean()


def test_numbers_and_sizes(drawn):
    table, splits = drawn
    assert {split: len(names) for split, names in splits.items()} == chemistry.ASSAYS
    assert sorted(n for names in splits.values() for n in names) == sorted(table.names)
    assert 40 <= int(table.size.min()) < int(table.size.max()) <= 120
    assert len(table.value) == len(table.compound) == int(table.size.sum())
    assert table.bits.shape[1] == 256 // 8 and table.bits.dtype == torch.uint8


def test_names_tell_the_family_and_shifted_families_are_others(drawn):
    _, splits = drawn
    families = {s: {n.partition("/")[0] for n in names} for s, names in splits.items()}
    assert families["train"] == families["test"] == {f"family{i}" for i in range(8)}
    assert families["shifted"] == {f"family{i}" for i in range(8, 16)}


def test_fingerprints_are_sparse_and_activities_vary(drawn):
    table, _ = drawn
    density = np.unpackbits(table.bits.numpy(), axis=1).mean()
    assert 0.05 < density < 0.3
    assert float(table.value.std()) == pytest.approx(1.17, abs=0.1)
    assert bool(table.value.isfinite().all())


def test_the_same_seed_gives_the_same_chemistry(drawn):
    table, _ = drawn
    assert torch.equal(chemistry.draw()[0].value, table.value)
    assert not torch.equal(chemistry.draw(seed=1)[0].value[:100], table.value[:100])


@pytest.mark.full
def test_assays_of_a_family_tell_about_each_other(drawn):
    """A ridge fit on one assay predicts the others of its family far better than strangers."""
    table, splits = drawn
    found = {True: [], False: []}
    for name in splits["train"][:8]:
        x, y = assay(table, name)
        weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
        for other in splits["test"][:8]:
            bits, target = assay(table, other)
            same = name.partition("/")[0] == other.partition("/")[0]
            found[same].append(np.corrcoef(bits @ weights, target)[0, 1] ** 2)
    assert np.mean(found[True]) > 3 * np.mean(found[False])


def test_noise_is_as_large_as_asked_for():
    quiet, loud = (chemistry.draw(noise=n)[0].value for n in (0.0, 0.5))
    assert float((loud - quiet).std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("arguments", [{"families": 0}, {"bits": 12}, {"bits": 0}])
def test_settings_must_make_sense(arguments):
    with pytest.raises(ValueError, match="families must be at least 1 and bits a multiple of 8"):
        chemistry.draw(**arguments)
