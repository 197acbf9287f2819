import dataclasses

import torch
from trlearner.experiments.data.handwriting import Hand, _cubic, drawn

STILL = Hand(turn=0, slant=0, stretch=1, least=20, most=20, wobble=0, margin=4)
CANVAS = 120


def bars(drawings: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    prints = torch.zeros(drawings, 1, CANVAS, CANVAS, dtype=torch.uint8)
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    prints[..., top : top + height, left : left + width] = 255
    return prints, torch.tensor([[width, height]]).expand(drawings, 2)


def draw(hand: Hand, drawings: int = 200, seed: int = 0, width: int = 20, height: int = 60):
    return drawn(*bars(drawings, width, height), hand, torch.Generator().manual_seed(seed))


def middles(images: torch.Tensor) -> torch.Tensor:
    """Centers of mass ``[drawings, 2]``, from the middle of the image."""
    weight = images[:, 0].float() / images.float().sum((1, 2, 3))[:, None, None]
    at = torch.arange(images.shape[-1]) + 0.5 - images.shape[-1] / 2
    return torch.stack([(weight * at).sum((1, 2)), (weight * at[:, None]).sum((1, 2))], 1)


def test_a_still_hand_only_scales():
    margin = dataclasses.replace(STILL, margin=14)  # no room to shift
    images = draw(margin, drawings=3, width=30, height=60)
    expected = torch.zeros(28, 28)
    expected[4:24, 9:19] = 255
    torch.testing.assert_close(images[2, 0].float(), expected, rtol=0, atol=1)


def test_ink_keeps_off_the_edges():
    images = draw(dataclasses.replace(Hand(), wobble=0.0), drawings=1000)
    edge = int(Hand.margin) - 1
    inner = images[..., edge:-edge, edge:-edge]
    assert images.sum() == inner.sum()
    assert (images.amax((1, 2, 3)) > 200).all()


def test_drawings_wander_around_the_middle():
    at = middles(draw(Hand(), drawings=1000))
    assert at.mean(0).abs().max() < 0.2
    assert at.abs().max() < Hand.shift + 1.5  # the wobble's share
    assert (at.std(0) > 0.5).all()


def test_sizes_lie_between_least_and_most():
    images = draw(dataclasses.replace(STILL, least=10, most=20), drawings=500)
    heights = (images[:, 0].amax(2) > 127).sum(1)
    assert 9 <= heights.min() <= 11
    assert 19 <= heights.max() <= 21


def test_each_change_changes():
    plain = draw(STILL)
    for change in ({"turn": 20.0}, {"slant": 0.5}, {"stretch": 2.0}, {"wobble": 1.0}):
        assert not torch.equal(plain, draw(dataclasses.replace(STILL, **change)))


def test_the_generator_decides():
    assert torch.equal(draw(Hand(), seed=3), draw(Hand(), seed=3))
    assert not torch.equal(draw(Hand(), seed=3), draw(Hand(), seed=4))


def test_interpolation_is_torchs():
    points = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = _cubic(4, 56)
    expected = torch.nn.functional.interpolate(points, (56, 56), mode="bicubic", align_corners=True)
    torch.testing.assert_close(smooth @ points @ smooth.T, expected, rtol=1e-5, atol=1e-5)
