import math
import re
import subprocess
import sys

import pytest
import torch
from trlearner.experiments.data import images
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.problem import Request, Source

import trlearner as tr


def gallery(prefix: str, channels: int = 1, size: int = 16) -> Gallery:
    """Eight classes of six images; an image's value is its place in its class."""
    values = torch.arange(6, dtype=torch.uint8).repeat(8)[:, None, None, None]
    kinds = [Kind(f"{prefix}{i}", "", 6) for i in range(8)]
    return Gallery.of(values.expand(48, channels, size, size).contiguous(), kinds)


def load(request: Request) -> dict[str, Gallery]:
    size = request.options.get("size", 16)
    return {name: gallery(name, size=size) for name in ("train", "validation", "test")}


def load_colored(request: Request) -> dict[str, Gallery]:
    return {name: gallery(f"color-{name}", 3, 32) for name in ("train", "test")}


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toys = {
        "images/toy": images.Images(load, ("size",)),
        "images/colored": images.Images(load_colored, ()),
    }
    monkeypatch.setattr(images, "IMAGES", toys)


def build(name: str = "images/toy", shots: int = 1, queries: int = 2, **kwargs):
    return images.problem(name, Request(shots, queries, ways=3, **kwargs))


def sample(problem, split: str = "train", tasks: int = 20) -> tr.TaskBatch:
    return problem.source.sample(split, tasks, torch.Generator().manual_seed(0))


def test_every_problem_is_named():
    names = "omniglot", "omniglot-alphabets", "glyphs", "grocery", "folder"
    assert list(images.PROBLEMS) == [f"images/{name}" for name in names]


def test_a_problem_fits_together():
    problem = build()
    assert isinstance(problem.source, Source)
    batch, network = sample(problem), problem.network()
    logits = network(batch.query.x[0])
    assert logits.shape == (6, 3)
    assert problem.loss_fn(logits, batch.query.y[0]).ndim == 0
    assert problem.features(network)(batch.query.x[0]).shape == (6, 32)
    assert isinstance(network.get_submodule(problem.head), torch.nn.Linear)
    assert (problem.encoder, problem.align) == ("input", "sinkhorn")


def test_networks_by_option():
    small = build(options={"filters": 4}).network()
    assert small.head.in_features == 4
    options = {"network": "resnet12", "widths": [2, 2, 4, 6]}
    assert build(options=options).network().head.in_features == 6


def test_networks_follow_torchs_random_state():
    problem, weights = build(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(problem.network().head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_other_images_to_test_on():
    problem = build(options={"shifted": "images/colored"})
    batch = sample(problem, "shifted")
    assert batch.query.x.shape == (20, 6, 1, 16, 16)
    assert all(name.startswith("color-test") for names in batch.ids for name in names)
    options = {"shifted": "images/toy", "shifted_options": {"size": 8}}
    assert sample(build("images/colored", options=options), "shifted").query.x.shape[2:] == (
        3,
        32,
        32,
    )
    with pytest.raises(ValueError, match="there is no split 'shifted'"):
        sample(build(), "shifted")
    with pytest.raises(ValueError, match="shifted must be one of .* got 'images/x'"):
        build(options={"shifted": "images/x"})


def test_unknown_options():
    with pytest.raises(ValueError, match=r"images/toy does not know the options \['colour'\]"):
        build(options={"colour": 1})
    with pytest.raises(ValueError, match=r"images/colored does not know the options \['size'\]"):
        build(options={"shifted": "images/colored", "shifted_options": {"size": 3}})


def test_a_pool_of_images_and_of_tasks():
    problem = build(pool=3, train_tasks=4)
    batch = sample(problem, tasks=4)
    assert sorted({round(255 * v) for v in batch.query.x.unique().tolist()}) == [0, 1, 2]
    assert len({names for _ in range(5) for names in sample(problem, tasks=4).ids}) == 4
    assert sample(problem, "test").query.x.max() * 255 > 4
    with pytest.raises(ValueError, match="pool must hold the 1 support and 2 query .* got 2"):
        build(pool=2)


def test_accuracy_counts_real_queries():
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], [[0.0, 1.0]] * 3])
    y = torch.tensor([[0, 1, 1], [0, 0, 0]])
    x = torch.zeros(2, 3, 1)
    got = images.accuracy(logits, tr.Samples(x, y, ways=2))
    torch.testing.assert_close(got, torch.tensor([2 / 3, 0.0]))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    got = images.accuracy(logits, tr.Samples(x, y, mask, ways=2))
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0]))
    assert math.isclose(got.mean(), 0.5)


def test_galleries_that_share_images_move_once():
    one = gallery("a")
    moved = images._moved({"train": one[[0, 1]], "test": one[[2, 3]]}, "meta")
    assert moved["train"].images is moved["test"].images
    assert moved["train"].images.device.type == "meta"


@pytest.mark.full
def test_importing_needs_no_matplotlib():
    code = (
        "import sys; import trlearner.experiments.data.images as _; "
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"network": "vgg"}, "the option network must be one of conv4, resnet12, got 'vgg'"),
        ({"filters": 0}, "the option filters must be a whole number from 1 to 4096, got 0"),
        ({"filters": "many"}, "the option filters must be a whole number from 1 to 4096"),
        ({"network": "resnet12", "widths": [-1]}, "the option widths must be a list, each a whole"),
    ],
)
def test_senseless_networks_are_refused(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        build(options=options).network()
