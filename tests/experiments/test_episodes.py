"""Images carry their own number, so that it can be read off a task which ones are in it."""

import pytest
import torch
from trlearner.experiments.data.episodes import Episodes
from trlearner.experiments.data.gallery import Gallery, Kind

import trlearner as tr

WAYS, SHOTS, QUERIES = 3, 2, 4
SIZES = (6, 9, 7, 6, 12, 6, 8)


def numbered(sizes: tuple[int, ...] = SIZES, turned: bool = False) -> Gallery:
    """Images ``[1, 4, 4]`` whose upper left corner holds their number; the rest is dark."""
    kinds = [Kind(f"kind{i}", "", size) for i, size in enumerate(sizes)]
    images = torch.zeros(sum(sizes), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(1, sum(sizes) + 1)
    gallery = Gallery.of(images, kinds)
    return gallery.turned() if turned else gallery


def episodes(gallery: Gallery, **kwargs) -> Episodes:
    return Episodes({"train": gallery, "test": gallery[[0, 2, 4]]}, SHOTS, QUERIES, WAYS, **kwargs)


def sampled(source: Episodes, split: str = "train", tasks: int = 50, seed: int = 0) -> tr.TaskBatch:
    return source.sample(split, tasks, torch.Generator().manual_seed(seed))


def numbers(x: torch.Tensor) -> torch.Tensor:
    """Which images these are: ``[tasks, samples]``."""
    return (x.flatten(2).amax(2) * 255).round().long() - 1


def owners(gallery: Gallery) -> torch.Tensor:
    """The class of each image."""
    return torch.repeat_interleave(torch.arange(len(gallery)), gallery.counts)


def test_shapes_and_labels():
    batch = sampled(episodes(numbered()))
    assert batch.support.x.shape == (50, WAYS * SHOTS, 1, 4, 4)
    assert batch.query.x.shape == (50, WAYS * QUERIES, 1, 4, 4)
    assert batch.ways == WAYS
    assert batch.support.y[7].tolist() == [0, 1, 2] * SHOTS
    assert batch.query.y[7].tolist() == [0, 1, 2] * QUERIES
    assert batch.support.y.dtype == torch.int64
    assert batch.query.x.min() >= 0 and batch.query.x.max() <= 1


def test_labels_and_ids_tell_the_class():
    gallery = numbered()
    batch = sampled(episodes(gallery))
    for samples in (batch.support, batch.query):
        classes = owners(gallery)[numbers(samples.x)]
        named = torch.tensor([[int(name[4:]) for name in row] for row in batch.ids])
        torch.testing.assert_close(classes, named.gather(1, samples.y), rtol=0, atol=0)


def test_no_image_comes_twice_and_no_class_either():
    batch = sampled(episodes(numbered()))
    images = numbers(torch.cat([batch.support.x, batch.query.x], 1))
    for row, names in zip(images.tolist(), batch.ids, strict=True):
        assert len(set(row)) == WAYS * (SHOTS + QUERIES)
        assert len(set(names)) == WAYS


def test_all_images_and_classes_come_equally_often():
    gallery = numbered()
    batch = sampled(episodes(gallery), tasks=7000)
    seen = numbers(batch.support.x).flatten().bincount(minlength=sum(SIZES))
    expected = 7000 * WAYS / len(SIZES) * SHOTS / gallery.counts[owners(gallery)]
    assert ((seen - expected).abs() < 5 * expected.sqrt()).all()


def test_a_split_has_its_own_classes():
    batch = sampled(episodes(numbered()), "test")
    assert {name for names in batch.ids for name in names} == {"kind0", "kind2", "kind4"}


def test_the_generator_decides():
    source = episodes(numbered(turned=True))
    one, same, other = (sampled(source, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.support.x, same.support.x)
    assert torch.equal(one.query.x, same.query.x)
    assert one.ids == same.ids
    assert not torch.equal(one.query.x, other.query.x)
    state = torch.random.get_rng_state()
    sampled(source)
    assert torch.equal(state, torch.random.get_rng_state())


def test_turned_images_are_all_turned_alike_and_named():
    gallery = numbered(turned=True)
    batch = sampled(episodes(gallery))
    ends = {"": 0, "90": 1, "180": 2, "270": 3}
    turns = torch.tensor([[ends[name.partition("@")[2]] for name in row] for row in batch.ids])
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    for samples in (batch.support, batch.query):
        which = numbers(samples.x)
        for task in range(10):
            for i in range(which.shape[1]):
                k = int(turns[task, samples.y[task, i]])
                expected = gallery.images[which[task, i]].rot90(k, (1, 2)).float() / 255
                torch.testing.assert_close(samples.x[task, i], expected, rtol=0, atol=0)


def test_fixed_tasks_keep_classes_and_labels():
    source = episodes(numbered(turned=True), tasks=5)
    seen = {names for seed in range(20) for names in sampled(source, tasks=3, seed=seed).ids}
    assert len(seen) == 5
    assert len(set(sampled(source, tasks=5).ids)) == 5
    assert len(set(sampled(source, "test", tasks=50).ids)) > 5
    with pytest.raises(ValueError, match="6 tasks were asked for, but there are 5 to train on"):
        sampled(source, tasks=6)


def test_images_of_another_form_are_brought_to_the_firsts():
    colored = torch.zeros(30, 3, 8, 8, dtype=torch.uint8)
    colored[:, 0] = 255
    other = Gallery.of(colored, [Kind(name, "", 10) for name in "abc"])
    source = Episodes({"train": numbered(), "shifted": other}, SHOTS, QUERIES, WAYS)
    batch = sampled(source, "shifted")
    assert batch.query.x.shape == (50, WAYS * QUERIES, 1, 4, 4)
    torch.testing.assert_close(batch.query.x, torch.full_like(batch.query.x, 1 / 3))
    back = Episodes({"train": other, "shifted": numbered()}, SHOTS, QUERIES, WAYS)
    assert sampled(back, "shifted").query.x.shape == (50, WAYS * QUERIES, 3, 8, 8)


def test_tasks_go_to_the_device():
    # The images stay behind, as memory-mapped ones do.
    source = Episodes({"train": numbered(turned=True)}, SHOTS, QUERIES, WAYS, device="meta")
    batch = sampled(source)
    assert batch.query.x.device.type == batch.query.y.device.type == "meta"
    assert len(batch.ids) == 50


def test_no_such_split():
    with pytest.raises(ValueError, match=r"no split 'shifted', only \['test', 'train'\]"):
        sampled(episodes(numbered()), "shifted")


def test_too_few_classes_or_images():
    with pytest.raises(ValueError, match="'train' has 2 classes, fewer than ways=3"):
        Episodes({"train": numbered((9, 9))}, SHOTS, QUERIES, WAYS)
    message = "need 6 images of each class, but 'kind1' in the split 'train' has 5"
    with pytest.raises(ValueError, match=message):
        Episodes({"train": numbered((9, 5, 9))}, SHOTS, QUERIES, WAYS)
