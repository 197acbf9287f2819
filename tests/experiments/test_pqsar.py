import json
import os
import pickle

import numpy as np
import pytest
from trlearner.experiments.data import pqsar
from trlearner.experiments.data.measurements import Measurement

ACTIVITIES = """Table S2. Activities
compound assay_id pIC50_exp pIC50_pred split

CHEMBL1 688 5.5 5.25 TRN
CHEMBL22 688 \u20101.5 0.5 TST
Page 2
CHEMBL22 12 6 \u22120.1 TRN
"""
COMPOUNDS = """Table S3. Compounds
compound,SMILES
CHEMBL1,CCO

CHEMBL22,CC(=O)Oc1cccc
Page 7
c1C(=O)[O\u2010]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / pqsar.ACTIVITIES).write_text(ACTIVITIES, "utf-8")
    (tmp_path / pqsar.COMPOUNDS).write_text(COMPOUNDS, "utf-8")
    return tmp_path


def test_what_was_copied_out_of_a_pdf_is_read(folder):
    aspirin = "CC(=O)Oc1ccccc1C(=O)[O-]"
    assert pqsar.compounds(folder / pqsar.COMPOUNDS) == {"CHEMBL1": "CCO", "CHEMBL22": aspirin}
    assert pqsar.read(folder) == [
        Measurement("688", "CCO", 5.5, support=True),
        Measurement("688", aspirin, -1.5, support=False),
        Measurement("12", aspirin, 6.0, support=True),
    ]


def test_a_minus_in_another_encoding_is_still_one(folder):
    (folder / pqsar.ACTIVITIES).write_bytes(b"CHEMBL1 688 \x965.5 5 TRN\n")
    assert pqsar.read(folder)[0].value == -5.5


@pytest.mark.parametrize(
    "line",
    [
        "CHEMBL1,688,5.5,5.25,TRN",
        "CHEMBL1 688 5.5 TRN",
        "CHEMBL1 688 5.5 5.25 TRN extra",
        "CHEMBL1 688 5.5 5.25 train",
        "CHEMBL1 x 5.5 5.25 TRN",
        "CHEMBL1 688 x 5.25 TRN",
    ],
)
def test_other_activities_are_refused_by_line(folder, line):
    (folder / pqsar.ACTIVITIES).write_text(f"heading\n{line}\n")
    with pytest.raises(
        ValueError, match=r"si_002.txt:2: expected 'compound assay pIC50 prediction"
    ):
        pqsar.read(folder)


def test_other_compounds_are_refused_by_line(folder):
    (folder / pqsar.COMPOUNDS).write_text("\nCHEMBL1 CCO\n")
    with pytest.raises(
        ValueError, match="si_003.txt:2: expected 'compound,SMILES', got 'CHEMBL1 CCO'"
    ):
        pqsar.read(folder)
    (folder / pqsar.COMPOUNDS).write_text("CCO\n")
    with pytest.raises(ValueError, match="si_003.txt:1: expected 'compound,SMILES' before"):
        pqsar.read(folder)


def test_an_unknown_compound_is_named(folder):
    (folder / pqsar.COMPOUNDS).write_text("CHEMBL1,CCO\n")
    with pytest.raises(
        ValueError, match="si_002.txt:5: compound CHEMBL22 is not in ci9b.*where 1 are"
    ):
        pqsar.read(folder)


def test_no_measurement_at_all_is_an_error(folder):
    (folder / pqsar.ACTIVITIES).write_text("nothing\n")
    with pytest.raises(ValueError, match="has no line with a ChEMBL number"):
        pqsar.read(folder)


GROUPS = {"train": [688, 12], "val": [5], "test": [7, 8]}


@pytest.mark.parametrize("ending", ["pickle", "json"])
def test_splits_are_read(tmp_path, ending):
    path = tmp_path / f"drug_split_id_group1.{ending}"
    path.write_bytes(pickle.dumps(GROUPS) if ending == "pickle" else json.dumps(GROUPS).encode())
    assert pqsar.split(path) == {"train": ("688", "12"), "validation": ("5",), "test": ("7", "8")}


def test_numpy_numbers_are_plain_enough(tmp_path):
    path = tmp_path / "group.pickle"
    arrays = {"train": np.array([688, 12]), "val": list(np.array([5])), "test": {7, 8}}
    path.write_bytes(pickle.dumps(arrays))
    found = pqsar.split(path)
    assert found["train"] == ("688", "12") and found["validation"] == ("5",)
    assert sorted(found["test"]) == ["7", "8"]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "group.pickle"
    path.write_bytes(pickle.dumps({**GROUPS, "test": Harmful()}))
    with pytest.raises(ValueError, match=r"was not loaded. If you trust .* group.json"):
        pqsar.split(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"train": [1]}', '{"train": 1}'])
def test_other_splits_are_refused(tmp_path, content):
    path = tmp_path / "group.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r'group.json: expected {"train": \[...\], "val"'):
        pqsar.split(path)
