"""Tasks from a turntable: the right pictures with the right turns, and every zero that there is."""

import dataclasses

import pytest
import torch
from trlearner.experiments.data.gallery import Gallery, Kind
from trlearner.experiments.data.problem import Request, Source
from trlearner.experiments.data.turntable import SCALE, Turntable

VIEWS, OBJECTS = 20, 6
REQUEST = Request(shots=4, queries=3)
NAMES = [f"object {i}" for i in range(OBJECTS)]
TURNS = {
    name: torch.rand(VIEWS, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    for i, name in enumerate(NAMES)
}


@pytest.fixture
def splits():
    """Pictures of one pixel, bright as their place in the gallery."""
    images = torch.arange(OBJECTS * VIEWS, dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = Gallery.of(images, [Kind(name, "", VIEWS) for name in NAMES])
    return {"train": whole[[3, 0, 1]], "validation": whole[[2]], "test": whole[[5, 4]]}


def draw(source, split="train", tasks=3, seed=0):
    return source.sample(split, tasks, torch.Generator().manual_seed(seed))


def seen(batch):
    """Which picture each sample is, and its target, of support and query together."""
    x = torch.cat([batch.support.x, batch.query.x], 1)
    return (x * 255).round().long().flatten(1), torch.cat([batch.support.y, batch.query.y], 1)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pictures_and_turns_belong_together(splits, split):
    source = Turntable(splits, TURNS, REQUEST, "file")
    assert isinstance(source, Source)
    tasks = len(splits[split])
    batch = draw(source, split, tasks)
    assert batch.support.x.shape == (tasks, 4, 1, 1, 1)
    assert batch.query.y.shape == (tasks, 3, 1)
    assert set(batch.ids) == {kind.name for kind in splits[split].kinds}
    for name, places, targets in zip(batch.ids, *seen(batch), strict=True):
        assert len(set(places.tolist())) == 7  # no view twice
        view = places - NAMES.index(name) * VIEWS
        expected = SCALE * TURNS[name][view].float()
        torch.testing.assert_close(targets.flatten(), expected)


def test_more_tasks_than_objects_take_turns(splits):
    ids = draw(Turntable(splits, TURNS, REQUEST, "file"), "test", 5).ids
    assert sorted(ids.count(name) for name in set(ids)) == [2, 3]


def test_the_same_generator_draws_the_same(splits):
    source = Turntable(splits, TURNS, REQUEST, "task")
    a, b, other = draw(source), draw(source), draw(source, seed=1)
    assert a.ids == b.ids
    assert a.query.x.equal(b.query.x) and a.query.y.equal(b.query.y)
    assert not a.query.x.equal(other.query.x)


def offsets(source, seed):
    """By how much each task's targets are turned; the same for all of its samples."""
    batch = draw(source, seed=seed)
    found = {}
    for name, places, targets in zip(batch.ids, *seen(batch), strict=True):
        turn = TURNS[name][places - NAMES.index(name) * VIEWS]
        away = (targets.flatten() / SCALE - turn) % 1
        around = torch.stack([(away * 2 * torch.pi).cos(), (away * 2 * torch.pi).sin()], 1)
        assert float((around - around[0]).abs().max()) < 1e-4
        assert float(targets.min()) >= 0 and float(targets.max()) <= SCALE
        found[name] = float(away[0])
    return found


def test_each_object_or_each_task_has_its_own_zero(splits):
    fixed, free = (Turntable(splits, TURNS, REQUEST, name) for name in ("object", "task"))
    a, b = offsets(fixed, 0), offsets(fixed, 1)
    assert a == pytest.approx(b, abs=1e-5)
    assert min(abs(x - y) for n, x in a.items() for m, y in a.items() if n != m) > 0.01
    c, d = offsets(free, 0), offsets(free, 1)
    assert all(abs(c[name] - d[name]) > 1e-3 for name in c)


def test_fewer_training_objects_and_a_pool_of_their_views(splits):
    request = dataclasses.replace(REQUEST, train_tasks=2, pool=7)
    source = Turntable(splits, TURNS, request, "object")
    places = [seen(draw(source, tasks=2, seed=i))[0] for i in range(9)]
    drawn = set(torch.cat(places).flatten().tolist())
    assert drawn == {*range(60, 67), *range(7)}  # the first views of objects 3 and 0
    test = [seen(draw(source, "test", 2, i))[0] for i in range(20)]
    assert len(set(torch.cat(test).flatten().tolist())) == 2 * VIEWS


@pytest.mark.unchecked
def test_errors(splits):
    with pytest.raises(ValueError, match="canonical must be file, object or task, got 'none'"):
        Turntable(splits, TURNS, REQUEST, "none")
    for wrong, said in [
        ({"train_tasks": 4}, "train_tasks must be at most the 3 training objects, got 4"),
        ({"pool": 6}, "must have 7 views for 4 shots and 3 queries, got 6"),
        ({"queries": 17}, "must have 21 views for 4 shots and 17 queries, got 20"),
    ]:
        with pytest.raises(ValueError, match=said):
            Turntable(splits, TURNS, dataclasses.replace(REQUEST, **wrong), "object")
    with pytest.raises(ValueError, match="one of train, validation, test, got 'shifted'"):
        draw(Turntable(splits, TURNS, REQUEST, "object"), "shifted")
