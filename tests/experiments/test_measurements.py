import pytest
import torch
from trlearner.experiments.data.measurements import Measurement, read_csv, tabulate

OWN = {name: name for name in ("task", "smiles", "value", "split")}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def written(tmp_path, text):
    path = tmp_path / "assays.csv"
    path.write_text(text, "utf-8")
    return path


def test_rows_are_read_in_order(tmp_path):
    path = written(tmp_path, "task,smiles,value\nA,CCO,5.5\nB,CC, 7 \n")
    assert read_csv(path, OWN) == [Measurement("A", "CCO", 5.5), Measurement("B", "CC", 7.0)]


def test_other_columns_and_names(tmp_path):
    path = written(tmp_path, "\ufeffid,mol,pKi,when\n1,CCO,5,train\n2,CC,6,test\n")
    found = read_csv(path, {"smiles": "mol", "value": "pKi", "part": "when"}, assay="X")
    assert found == [
        Measurement("X", "CCO", 5.0, support=True),
        Measurement("X", "CC", 6.0, support=False),
    ]


def test_splits_are_read_where_there_are_any(tmp_path):
    path = written(tmp_path, "task,smiles,value,split\nA,CCO,5,train\nB,CC,6,\n")
    assert [one.split for one in read_csv(path, OWN)] == ["train", None]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"assays.csv:1: the header must name the columns \['smiles', 'task', 'value'\]"),
        ("task,smile,value\n", r"\['smiles'\] missing; got \['task', 'smile', 'value'\]"),
        ("task,smiles,value\n", "has a header but no rows"),
        ("task,smiles,value\nA,CC,5\nA,CC,x\n", "assays.csv:3: value must be a finite number.*'x'"),
        ("task,smiles,value\nA,CC,nan\n", "assays.csv:2: value must be a finite number"),
        ("task,smiles,value\nA,CC\n", "assays.csv:2: value must be a finite number, got None"),
        ("task,smiles,value\nA,,5\n", "assays.csv:2: task and smiles must not be empty"),
        (
            f"task,smiles,value\nA,C,5\nA,{'C' * 20_000},5\n",
            "csv:3: a SMILES must have at most 2000 characters, got 20000: CCCC",
        ),
        ("task,smiles,value\n,CC,5\n", "assays.csv:2: task and smiles must not be empty"),
    ],
)
def test_errors_name_the_line(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        read_csv(written(tmp_path, text), OWN)


def test_the_part_must_be_known(tmp_path):
    path = written(tmp_path, "task,smiles,value,when\nA,CC,5,later\n")
    with pytest.raises(ValueError, match="csv:2: when must be train or test, got 'later'"):
        read_csv(path, {**OWN, "part": "when"})


def test_the_table_holds_assays_one_after_the_other():
    pytest.importorskip("rdkit")
    rows = [("B", "CC", 1), ("A", "CCO", 2), ("B", "CCC", 3), ("A", "CC", 4), ("B", "CO", 5)]
    table = tabulate([Measurement(*row) for row in rows], bits=64)
    assert table.names == ("B", "A")
    assert table.size.tolist() == [3, 2]
    assert table.supports is None
    assert sorted(table.value[:3].tolist()) == [1, 3, 5]
    assert table.bits.shape == (4, 8) and table.bits.dtype == torch.uint8
    shared = dict(zip(table.value.tolist(), table.compound.tolist(), strict=True))
    assert shared[1] == shared[4]  # CC in both


def test_a_compound_measured_twice_in_an_assay_is_one_with_the_mean():
    pytest.importorskip("rdkit")
    rows = [("A", "CCO", 5), ("A", "CC", 9), ("A", "OCC", 6), ("B", "CCO", 1)]
    table = tabulate([Measurement(*row) for row in rows])
    assert table.size.tolist() == [2, 1]
    assert sorted(table.value.tolist()) == [1.0, 5.5, 9.0]


def test_support_candidates_come_first_and_a_repeated_compound_stays_where_it_was():
    pytest.importorskip("rdkit")
    rows = [
        ("A", "CCO", 1, None, False),
        ("A", "CC", 2, None, True),
        ("A", "OCC", 3, None, True),
        ("A", "CCC", 4, None, True),
    ]
    table = tabulate([Measurement(*row) for row in rows])
    assert table.supports.tolist() == [2]
    assert sorted(table.value[:2].tolist()) == [2, 4]
    assert table.value[2] == 2  # the mean of 1 and 3, still a query


def test_unreadable_compounds_are_left_out_and_named():
    pytest.importorskip("rdkit")
    rows = [("A", "CCO", 1), ("A", "nonsense", 2), ("B", "CC", 3)]
    with pytest.warns(UserWarning, match="SMILES of 1 of 3 measurements.*'nonsense' in A"):
        table = tabulate([Measurement(*row) for row in rows])
    assert table.value.tolist() == [1, 3]


@pytest.mark.filterwarnings("ignore:RDKit can't read the SMILES")
def test_an_assay_without_a_readable_compound_is_an_error():
    pytest.importorskip("rdkit")
    rows = [("A", "CCO", 1), ("B", "nonsense", 2), ("B", "?", 3)]
    with pytest.raises(ValueError, match=r"single compound of 1 assays, the first \['B'\]"):
        tabulate([Measurement(*row) for row in rows])
