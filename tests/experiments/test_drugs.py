import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trlearner.experiments.data import chemistry, drugs
from trlearner.experiments.data.division import split_groups
from trlearner.experiments.data.measurements import read_csv
from trlearner.experiments.data.problem import MissingData, Request, Source

import trlearner as tr

DATA = os.environ.get("TRLEARNER_DATA")
SIMPD = Path(DATA or "") / "drugs" / "simpd" / "chemblKi_SIMPD"
real_data = pytest.mark.skipif(
    DATA is None or not SIMPD.is_dir(),
    reason="set TRLEARNER_DATA to a folder with drugs/simpd/chemblKi_SIMPD to run this",
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRLEARNER_CACHE", str(tmp_path / "cache"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name, shots=3, queries=4, **more):
    return drugs.PROBLEMS[name](Request(shots=shots, queries=queries, **more))


def alkane(carbons):
    return "C" * carbons


# --- What all problems are ---


def check(problem, bits):
    """A problem's parts fit each other: one meta-step, and both metrics of test tasks."""
    assert isinstance(problem.source, Source)
    torch.manual_seed(0)
    network = problem.network()
    learner = tr.ANIL(network, head=problem.head, lr=0.01, steps=2)
    encoder = tr.LabelledEncoder(problem.features(network), dim=4)
    regularizer = tr.TRLearner(encoder=encoder, lam=0.1, loss_fn=problem.loss_fn)
    batch = problem.source.sample("train", 3, generator())
    assert batch.support.x.shape[2] == bits
    regularizer(learner, batch).loss.backward()
    assert network.head.weight.grad.isfinite().all()
    tasks = problem.source.sample("test", 3, generator())
    predictions = regularizer(learner, tasks).predictions.detach()
    for metric in problem.metrics:
        values = metric.of_tasks(predictions, tasks.query)
        assert values.shape == (3,) and bool(values.isfinite().all())
    assert [metric.name for metric in problem.metrics] == ["r2", "mse"]


def test_errors_are_in_the_units_of_the_data():
    problem = build("drugs/synthetic")
    batch = problem.source.sample("test", 5, generator())
    mse = problem.metrics[1]
    found = mse.of_tasks(batch.query.y + 0.5, batch.query)
    expected = torch.full((5,), 0.25 * problem.source.std**2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert mse.better == "lower"


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"options must be among \['bits', .*got \['familys'\]"):
        build("drugs/synthetic", options={"familys": 3})


# --- drugs/synthetic ---


@pytest.mark.full
def test_synthetic_needs_neither_data_nor_rdkit():
    code = (
        "import sys; sys.modules['rdkit'] = None; import torch\n"
        "from trlearner.experiments.data.problem import Request\n"
        "from trlearner.experiments.data.drugs import PROBLEMS\n"
        "source = PROBLEMS['drugs/synthetic'](Request(shots=2, queries=3)).source\n"
        "print(len(source.sample('train', 4, torch.Generator())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "4", done.stderr


def test_synthetic_problems_work():
    check(build("drugs/synthetic"), bits=256)


def test_synthetic_options():
    problem = build(
        "drugs/synthetic",
        options={"families": 2, "bits": 64, "hidden": 8, "test_queries": 5, "chemistry": 1},
    )
    for split in chemistry.ASSAYS:
        batch = problem.source.sample(split, 4, generator())
        assert batch.query.x.shape == (4, 4 if split == "train" else 5, 64)
        families = {name.partition("/")[0] for name in batch.ids}
        assert families <= {"family2", "family3"} if split == "shifted" else {"family0", "family1"}
    assert problem.network().head.in_features == 8


# --- drugs/csv ---


def csv_file(tmp_path, splits=(), tasks=9, compounds=9):
    lines = ["task,smiles,value" + (",split" if splits else "")]
    for task in range(tasks):
        for i in range(compounds):
            ending = f",{splits[task % len(splits)]}" if splits else ""
            lines.append(f"task{task},{alkane(i + 1)},{(task + 1) * i / 7}{ending}")
    path = tmp_path / "assays.csv"
    path.write_text("\n".join(lines))
    return path


def test_csv_problems_work(tmp_path):
    pytest.importorskip("rdkit")
    path = csv_file(tmp_path)
    check(build("drugs/csv", options={"file": str(path), "bits": 512}), bits=512)


def test_csv_beside_the_data_is_found_and_its_column_decides(tmp_path):
    pytest.importorskip("rdkit")
    csv_file(tmp_path, ["train", "validation", "test"])
    problem = build("drugs/csv", options={"file": "assays.csv"}, data_dir=tmp_path)
    for place, split in enumerate(("train", "validation", "test")):
        ids = problem.source.sample(split, 3, generator()).ids
        assert {int(name[-1]) % 3 for name in ids} == {place}


def test_csv_errors(tmp_path):
    with pytest.raises(ValueError, match='needs options={"file": "assays.csv"}'):
        build("drugs/csv")
    with pytest.raises(MissingData, match=r"x.csv or .*x.csv is not there.*drugs/synthetic runs"):
        build("drugs/csv", options={"file": "x.csv"}, data_dir=tmp_path)
    csv_file(tmp_path, ["train", "test"])
    with pytest.raises(ValueError, match=r"leaves no task for \['validation'\]"):
        build("drugs/csv", options={"file": "assays.csv"}, data_dir=tmp_path)


# --- drugs/simpd ---


def simpd_folder(tmp_path, names, compounds=12):
    folder = tmp_path / "drugs" / "simpd" / "chemblKi_SIMPD"
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        lines = ["canonical_smiles,compound_chembl_id,pchembl_value,active,split"]
        for i in range(compounds):
            part = "test" if i % 3 == 2 else "train"
            lines.append(f"{alkane(i + 1)},CHEMBL{i},{5 + i * (number + 1) / 50},1,{part}")
        (folder / f"{name}.csv").write_text("\n".join(lines))
    return tmp_path


NAMES = [f"CHEMBL{i}-{j}" for i in range(8) for j in (1, 2)]


def test_simpd_problems_work_and_are_split_by_target(tmp_path):
    pytest.importorskip("rdkit")
    problem = build("drugs/simpd", data_dir=simpd_folder(tmp_path, NAMES))
    check(problem, bits=1024)
    targets = [
        {name.rpartition("-")[0] for name in problem.source.sample(split, n, generator()).ids}
        for split, n in (("train", 10), ("validation", 20), ("test", 20))
    ]
    assert sorted(t for found in targets for t in found) == [f"CHEMBL{i}" for i in range(8)]


def test_simpd_has_a_division_of_its_own(tmp_path):
    pytest.importorskip("rdkit")
    data = simpd_folder(tmp_path, NAMES)
    own = build("drugs/simpd", 100, 100, data_dir=data, options={"own_split": True})
    batch = own.source.sample("train", 1, generator())
    assert batch.support.x.shape[1] == 8 and batch.query.x.shape[1] == 4


def test_without_simpd_the_error_says_where_it_is_had(tmp_path):
    with pytest.raises(MissingData, match="rinikerlab/molecular_time_series.*drugs/synthetic runs"):
        build("drugs/simpd", data_dir=tmp_path)
    simpd_folder(tmp_path, [])
    with pytest.raises(MissingData, match="chemblKi_SIMPD has no CSV files"):
        build("drugs/simpd", data_dir=tmp_path)


@pytest.mark.full
@real_data
def test_the_real_assays_are_those_that_were_published():
    columns = {"smiles": "canonical_smiles", "value": "pchembl_value", "part": "split"}
    files = sorted(SIMPD.glob("*.csv"))
    found = [read_csv(path, columns, path.stem) for path in files]
    assert len(files) == 99 and sum(map(len, found)) == 50_197
    assert min(map(len, found)) == 300 and max(map(len, found)) == 996
    splits = split_groups({path.stem: path.stem.rpartition("-")[0] for path in files})
    targets = [{name.rpartition("-")[0] for name in names} for names in splits.values()]
    assert [len(names) for names in splits.values()] == [64, 13, 22]
    assert len(set.union(*targets)) == sum(map(len, targets)) == 78


@pytest.mark.full
@real_data
def test_real_assays_make_a_problem(tmp_path):
    pytest.importorskip("rdkit")
    folder = tmp_path / "drugs" / "simpd" / "chemblKi_SIMPD"
    folder.mkdir(parents=True)
    numbers = ("1821-1", "1833-1", "1833-2", "2014-1", "2035-1", "2056-1", "1945-1")
    for name in (f"CHEMBL{number}" for number in numbers):
        (folder / f"{name}.csv").symlink_to(SIMPD / f"{name}.csv")
    problem = build("drugs/simpd", data_dir=tmp_path)
    check(problem, bits=1024)
    assert 5 < problem.source.mean < 9 and 0.5 < problem.source.std < 2


# --- drugs/pqsar ---


def pqsar_folder(tmp_path, assays=6):
    folder = tmp_path / "drugs" / "pqsar"
    folder.mkdir(parents=True)
    activities = [
        f"CHEMBL{i} {assay} {i * (assay + 1) / 9} 0.5 {'TST' if i % 4 == 3 else 'TRN'}"
        for assay in range(assays)
        for i in range(1, 9 + assay)
    ]
    (folder / "ci9b00375_si_002.txt").write_text("\n".join(activities))
    compounds = [f"CHEMBL{i},{alkane(i)}" for i in range(1, 9 + assays)]
    (folder / "ci9b00375_si_003.txt").write_text("\n".join(compounds))
    groups = {"train": [0, 1, 2], "val": [3], "test": [4, 5]}
    (folder / "drug_split_id_group1.json").write_text(json.dumps(groups))
    return folder


def test_pqsar_problems_work_and_keep_the_published_division(tmp_path):
    pytest.importorskip("rdkit")
    pqsar_folder(tmp_path)
    problem = build("drugs/pqsar", 100, 100, data_dir=tmp_path)
    check(problem, bits=1024)
    batch = problem.source.sample("train", 3, generator())
    assert sorted(batch.ids) == ["0", "1", "2"]
    real = [batch.support.real(task)[0].shape[0] for task in range(3)]
    assert sorted(real) == [6, 7, 8]  # of 8, 9 and 10 compounds, two are TST


def test_pqsar_says_which_file_is_missing(tmp_path):
    with pytest.raises(MissingData, match=r"si_002.txt.*acs.jcim.9b00375.*drugs/synthetic runs"):
        build("drugs/pqsar", data_dir=tmp_path)
    pqsar_folder(tmp_path)
    with pytest.raises(MissingData, match=r"split of group 3 .*group3.pickle.*huaxiuyao/ATS"):
        build("drugs/pqsar", data_dir=tmp_path, options={"group": 3})


def test_pqsar_assays_without_measurements_are_named(tmp_path):
    folder = pqsar_folder(tmp_path)
    groups = {"train": [0, 1], "val": [2], "test": [77]}
    (folder / "drug_split_id_group1.json").write_text(json.dumps(groups))
    with pytest.raises(ValueError, match=r"1 assays have no measurement .*\['77'\]"):
        build("drugs/pqsar", data_dir=tmp_path)
