import pytest
import torch
from trlearner.experiments.data.models.resnet12 import Block, ResNet12


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 84)])
def test_features_and_head(channels, size):
    network = ResNet12(ways=5, channels=channels, widths=(4, 6, 6, 8))
    images = torch.randn(2, channels, size, size)
    assert network.features(images).shape == (2, 8)
    torch.testing.assert_close(network(images), network.head(network.features(images)))


def test_the_number_of_parameters_is_the_published_one():
    with torch.device("meta"):
        network = ResNet12(ways=5, channels=3)
    sizes = [p.numel() for p in network.features.parameters()]
    assert sum(sizes) == 12_424_320  # "12.4 M" in the literature
    assert sum(len(p.shape) == 4 and p.shape[-1] == 3 for p in network.parameters()) == 12


def test_a_block_is_its_formula():
    torch.manual_seed(0)
    block = Block(3, 5).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    def normed(x, kernel):
        x = torch.nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        return (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()

    one, two, three, short = (p for p in block.parameters() if p.ndim == 4)
    long = normed(leaky(normed(leaky(normed(x, one)), two)), three)
    expected = leaky(long + normed(x, short)).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


def test_the_batch_at_hand_normalizes():
    assert not list(ResNet12(ways=5, channels=1, widths=(2, 2, 2, 2)).buffers())
