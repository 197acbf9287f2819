"""The pose problems: procedural objects, folders of meshes, published pickles, and the network."""

import csv
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from trlearner.experiments.data import pose
from trlearner.experiments.data.models.pose import pose_network
from trlearner.experiments.data.problem import MissingData, Problem, Request, Source

import trlearner as tr

SMALL = {"size": 16, "views": 8, "filters": 4}
DATA = os.environ.get("TRLEARNER_DATA")
MESHES = Path(DATA or ".") / "pose" / "sweethome3d"
real = pytest.mark.skipif(
    not (DATA and MESHES.is_dir()), reason="needs TRLEARNER_DATA with pose/sweethome3d in it"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all tests here, so that each gallery is rendered once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TRLEARNER_CACHE", str(folder))
        yield folder


def build(name, data_dir=None, **options):
    request = Request(shots=3, queries=2, data_dir=data_dir, options=options)
    return pose.PROBLEMS[name](request)


def check(problem, splits=("train", "validation", "test", "shifted")):
    """Tasks of each split, of other objects each, that the network answers; their names."""
    assert isinstance(problem, Problem)
    assert isinstance(problem.source, Source)
    network = problem.network()
    assert isinstance(problem.features(network), torch.nn.Module)
    assert problem.head in dict(network.named_children())
    names = {}
    for split in splits:
        batch = problem.source.sample(split, 4, torch.Generator().manual_seed(0))
        assert batch.support.x.shape[:3] == (4, 3, 1)
        assert batch.query.y.shape == (4, 2, 1)
        assert float(batch.support.x.min()) >= 0 and float(batch.support.x.max()) <= 1
        assert float(batch.support.y.min()) >= 0 and float(batch.support.y.max()) < 10
        answers = network(batch.query.x.flatten(0, 1)).view(4, 2, 1)
        values = problem.metrics[0].of_tasks(answers, batch.query)
        torch.testing.assert_close(values, (answers - batch.query.y).square().mean((1, 2)))
        many = problem.source.sample(split, 200, torch.Generator().manual_seed(1))
        names[split] = set(many.ids)
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    return names


@pytest.mark.full
def test_procedural(cache):
    names = check(build("pose/procedural", **SMALL))
    assert {split: len(found) for split, found in names.items()} == {
        "train": 50,
        "validation": 15,
        "test": 30,
        "shifted": 30,
    }
    families = {split: {name.split()[0] for name in found} for split, found in names.items()}
    assert families["train"] == families["test"]
    assert not families["train"] & families["shifted"]


@pytest.mark.full
def test_a_learner_learns_from_it(cache):
    problem = build("pose/procedural", **SMALL)
    network = problem.network()
    learner = tr.MAML(network, lr=0.001, steps=2)
    encoder = tr.LabelledEncoder(problem.features(network), dim=8)
    regularizer = tr.TRLearner(encoder=encoder, lam=0.1, loss_fn=problem.loss_fn)
    batch = problem.source.sample("train", 3, torch.Generator().manual_seed(0))
    out = regularizer(learner, batch)
    out.loss.backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two chairs and four arrows made of a box and a beam, and a cube that looks alike from all sides."""
    root = tmp_path_factory.mktemp("meshes")
    cube = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    faces = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]

    def write(name, *boxes):
        lines = [
            f"v {x * a + p} {y * b + q} {z * c + r}"
            for (p, q, r), (a, b, c) in boxes
            for x, y, z in cube
        ]
        lines += [
            "f " + " ".join(str(8 * i + n) for n in f) for i in range(len(boxes)) for f in faces
        ]
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("\n".join(lines))

    write("plain/cube.obj", ((0, 0, 0), (1, 1, 1)))
    for i in range(10):
        write(f"arrow/{i}.obj", ((0, 0, 0), (1, 1, 1)), ((0.1, 0, 0.4), (0.2, 0.2, 1.5 + i / 10)))
    for i in range(2):
        write(f"Vehicles/{i}.obj", ((0, 0, 0), (1, 0.1, 2)), ((0, 0, 0), (1, 1 + i, 0.4)))
    return root


@pytest.mark.full
def test_a_folder_of_meshes(cache, folder):
    names = check(build("pose/meshes", folder=folder, **SMALL))
    assert {split: len(found) for split, found in names.items()} == {
        "train": 7,
        "validation": 1,
        "test": 2,
        "shifted": 2,
    }
    assert names["shifted"] == {"Vehicles/0.obj", "Vehicles/1.obj"}
    assert "plain/cube.obj" not in set().union(*names.values())
    everything = build("pose/meshes", folder=str(folder), distinct=0, shifted=[], up="z", **SMALL)
    kept = check(everything, ("train", "validation", "test"))
    assert sum(map(len, kept.values())) == 13


def write_pickles(folder, as_lists, suffix="_ins"):
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, objects in (("train", 20), ("val", 4)):
        images = generator.integers(0, 256, (objects, 6, 16, 16), np.uint8)
        labels = generator.random((objects, 6, 3))
        value = ([list(x) for x in images], labels.tolist()) if as_lists else (images, labels)
        (folder / f"{part}_data{suffix}.pkl").write_bytes(pickle.dumps(value, 2))
    return images, labels


@pytest.mark.parametrize("as_lists", [True, False])
def test_published_pickles(tmp_path, as_lists):
    images, labels = write_pickles(tmp_path / "pose" / "pascal3d", as_lists, "_ins" * as_lists)
    problem = build("pose/pickles", tmp_path, filters=4)
    names = check(problem, ("train", "validation", "test"))
    assert {split: len(found) for split, found in names.items()} == {
        "train": 18,
        "validation": 2,
        "test": 4,
    }
    batch = problem.source.sample("test", 4, torch.Generator().manual_seed(0))
    i = int(batch.ids[0].split()[1])
    shown = (batch.support.x[0, 0, 0] * 255).round().numpy().astype(np.uint8)
    view = next(v for v in range(6) if (images[i, v] == shown).all())
    assert float(batch.support.y[0, 0]) == pytest.approx(10 * labels[i, view, 2], abs=1e-5)


@pytest.mark.unchecked
def test_broken_pickles(tmp_path):
    with pytest.raises(
        MissingData, match="must hold train_data_ins.pkl or train_data.pkl, got nei"
    ):
        build("pose/pickles", folder=tmp_path)
    for value, said in [
        ([1, 2, 3], r"must be a pair \(images, labels\), got list"),
        (
            (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 5, 3))),
            r"got \[2, 3, 4, 4\] and \[2, 5, 3",
        ),
    ]:
        (tmp_path / "train_data_ins.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=said):
            build("pose/pickles", folder=tmp_path)


@pytest.mark.unchecked
def test_errors(tmp_path):
    for name, place in [("pose/meshes", "sweethome3d"), ("pose/pickles", "pascal3d")]:
        with pytest.raises(
            MissingData, match=f"is not in {tmp_path}/pose/{place}.*pose/procedural"
        ):
            build(name, tmp_path)
        with pytest.raises(MissingData, match="options folder must be a folder, got .*none"):
            build(name, folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"options must be among .*views, got \['colour'\]"):
        build("pose/procedural", colour=True)
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3")
    with pytest.raises(ValueError, match="at least 10 objects to train, validate and test, got 1"):
        build("pose/meshes", folder=tmp_path, distinct=0, **SMALL)


def test_network():
    network = pose_network()
    assert network(torch.zeros(2, 1, 128, 128)).shape == (2, 1)
    assert network.features[8].out_features == 196  # as published: 64 x 8 x 8 to 14 x 14
    assert network.features[8].in_features == 4096
    assert [tuple(p.shape) for p in network.head.parameters()] == [(1, 64), (1,)]
    assert not list(network.buffers())
    with pytest.raises(ValueError, match="size must be a multiple of 16.*got 100"):
        pose_network(100)


@real
def test_some_real_meshes(cache, tmp_path):
    with (MESHES / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["faces"]))
    small = [row for row in rows if row["category"] != "Vehicles"][:10]
    small += [row for row in rows if row["category"] == "Vehicles"][:2]
    for row in small:
        (tmp_path / row["file"]).parent.mkdir(exist_ok=True)
        shutil.copy(MESHES / row["file"], tmp_path / row["file"])
    with (tmp_path / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(small[0]))
        writer.writeheader()
        writer.writerows(small)
    names = check(build("pose/meshes", folder=tmp_path, distinct=0, **SMALL))
    assert sum(map(len, names.values())) == len(small)


@real
@pytest.mark.slow
def test_all_real_meshes(cache):
    names = check(build("pose/meshes", Path(DATA), **SMALL))
    assert {split: len(found) for split, found in names.items()} == {
        "train": 108,
        "validation": 15,
        "test": 31,
        "shifted": 22,
    }
    assert "Scopia/skateboard.obj" not in set().union(*names.values())
