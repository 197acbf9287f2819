"""Few-shot prediction of drug activity: a task is an assay, a sample is a compound's fingerprint.

Options of all problems: ``test_queries``, the query compounds of a task outside of training (or ``"all"``
that there are), and ``hidden``, the width of the network. Those of problems with SMILES: ``radius`` and
``bits`` of the fingerprints. The others are with each problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trlearner.experiments.data import chemistry, pqsar
from trlearner.experiments.data.assays import Assays, Table
from trlearner.experiments.data.correlation import R2
from trlearner.experiments.data.division import split_column, split_groups
from trlearner.experiments.data.measurements import read_csv, tabulate
from trlearner.experiments.data.models.fingerprint import FingerprintNet
from trlearner.experiments.data.problem import Builder, Metric, MissingData, Problem, Request, need
from trlearner.experiments.data.regression import squared_error

import trlearner as tr

PRINTS = {"radius": 2, "bits": 1024, "hidden": 500}


def synthetic(request: Request) -> Problem:
    """Made-up chemistry, see `chemistry`. Needs neither data nor RDKit.

    Options: ``families``, ``noise``, and ``chemistry``, a seed.
    """
    o = _options(
        request,
        {"families": 8, "noise": 0.3, "chemistry": 0, "bits": 256, "hidden": 128},
        test_queries="all",
    )
    table, splits = chemistry.draw(
        int(o["families"]), int(o["bits"]), float(o["noise"]), int(o["chemistry"])
    )
    return _problem(request, table, splits, o)


def from_csv(request: Request) -> Problem:
    """Your own assays: a file with the columns ``task``, ``smiles`` and ``value``.

    Tasks are split as the column ``split`` says (train, validation, test, shifted), if there is one;
    otherwise by name. Options: ``file``, and ``split_seed``.
    """
    o = _options(request, {"file": None, "split_seed": 0, **PRINTS}, test_queries=200)
    if o["file"] is None:
        raise ValueError('drugs/csv needs options={"file": "assays.csv"}, with task,smiles,value.')
    places = [Path(o["file"]).expanduser(), Path(request.data_dir or "") / o["file"]]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        tried = " or ".join(dict.fromkeys(str(place) for place in places))
        raise MissingData(f"{tried} is not there. Without any data, drugs/synthetic runs.")
    columns = {name: name for name in ("task", "smiles", "value", "split")}
    found = read_csv(path, columns)
    names = dict.fromkeys(one.assay for one in found)
    splits = split_column(found) or split_groups({n: n for n in names}, int(o["split_seed"]))
    missing = sorted({"train", "validation", "test"} - set(splits))
    if missing:
        raise ValueError(f"{path}: the column split leaves no task for {missing}.")
    return _problem(request, tabulate(found, int(o["radius"]), int(o["bits"])), splits, o)


def simpd(request: Request) -> Problem:
    """99 ChEMBL Ki assays of 78 targets, split by target.

    Landrum et al., J. Cheminform. 15, 119 (2023). Some compounds are in assays of several splits, with
    other activities. Options: ``split_seed``, and ``own_split``: draw support compounds from those
    that the data's simulated time split has early, queries from those that it has late.
    """
    o = _options(request, {"split_seed": 0, "own_split": False, **PRINTS}, test_queries=200)
    folder = need(
        request,
        "drugs/simpd/chemblKi_SIMPD",
        "The SIMPD set of ChEMBL Ki assays",
        "https://github.com/rinikerlab/molecular_time_series (datasets/chemblKi_SIMPD)",
        "drugs/synthetic",
    )
    columns = {"smiles": "canonical_smiles", "value": "pchembl_value"}
    if o["own_split"]:
        columns["part"] = "split"
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise MissingData(f"{folder} has no CSV files. Without any data, drugs/synthetic runs.")
    found = [one for path in files for one in read_csv(path, columns, path.stem)]
    targets = {path.stem: path.stem.rpartition("-")[0] for path in files}
    splits = split_groups(targets, int(o["split_seed"]))
    return _problem(request, tabulate(found, int(o["radius"]), int(o["bits"])), splits, o)


def martin(request: Request) -> Problem:
    """The 4,276 assays of pQSAR 2.0, see `pqsar`.

    Support and queries are divided as published, so ``shots`` and ``queries`` are upper bounds; large
    ones take all compounds, as the papers do. Option: ``group``, the published split of assays.
    """
    o = _options(request, {"group": 1, **PRINTS}, test_queries="all")
    paper = "the supporting information of https://doi.org/10.1021/acs.jcim.9b00375"
    for file in (pqsar.ACTIVITIES, pqsar.COMPOUNDS):
        need(request, f"drugs/pqsar/{file}", f"pQSAR's {file}", paper, "drugs/synthetic")
    stem = f"drugs/pqsar/drug_split_id_group{o['group']}"
    as_json = request.data_dir is not None and (request.data_dir / f"{stem}.json").exists()
    group = need(
        request,
        f"{stem}.json" if as_json else f"{stem}.pickle",
        f"The split of group {o['group']}",
        "the link at 'Drug' in the README of https://github.com/huaxiuyao/ATS",
        "drugs/synthetic",
    )
    splits, found = pqsar.split(group), pqsar.read(group.parent)
    listed = {name for names in splits.values() for name in names}
    found = [one for one in found if one.assay in listed]
    unknown = sorted(listed - {one.assay for one in found})
    if unknown:
        raise ValueError(
            f"{group}: {len(unknown)} assays have no measurement in {pqsar.ACTIVITIES}, the first "
            f"{unknown[:5]}. Are both files complete?"
        )
    return _problem(request, tabulate(found, int(o["radius"]), int(o["bits"])), splits, o)


def _problem(
    request: Request, table: Table, splits: Mapping[str, tuple[str, ...]], o: Mapping[str, Any]
) -> Problem:
    queries = None if o["test_queries"] == "all" else int(o["test_queries"])
    source = Assays(table, splits, request, queries)
    return Problem(
        source=source,
        network=partial(FingerprintNet, 8 * table.bits.shape[1], int(o["hidden"])),
        head="head",
        features=_features,
        loss_fn=mse_loss,
        metrics=(R2, _error(source.std)),
        encoder="labelled",
    )


def _error(std: float) -> Metric:
    """The mean squared error in the units of the data, squared; not of the standardized targets."""

    def of_tasks(predictions: Tensor, query: tr.Samples) -> Tensor:
        return squared_error(predictions, query) * std**2

    return Metric("mse", "lower", of_tasks)


def _features(network: nn.Module) -> nn.Module:
    return network.get_submodule("features")


def _options(request: Request, known: Mapping[str, Any], test_queries: int | str) -> dict[str, Any]:
    """The request's options over their defaults."""
    known = {**known, "test_queries": test_queries}
    strange = sorted(set(request.options) - set(known))
    if strange:
        raise ValueError(f"options must be among {sorted(known)}, got {strange}.")
    return {**known, **request.options}


PROBLEMS: Mapping[str, Builder] = {
    "drugs/synthetic": synthetic,
    "drugs/csv": from_csv,
    "drugs/simpd": simpd,
    "drugs/pqsar": martin,
}
