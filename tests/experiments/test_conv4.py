import pytest
import torch
from torch import nn
from trlearner.experiments.data.models.conv4 import Conv4

import trlearner as tr


@pytest.mark.parametrize(("channels", "size", "features"), [(1, 28, 8), (3, 84, 8 * 25)])
def test_features_and_head(channels, size, features):
    network = Conv4(ways=5, channels=channels, size=size, filters=8)
    images = torch.randn(3, channels, size, size)
    assert network.features(images).shape == (3, features)
    assert [name for name, _ in network.named_children()] == ["features", "head"]
    torch.testing.assert_close(network(images), network.head(network.features(images)))


def test_the_number_of_parameters_is_the_published_one():
    network = Conv4(ways=5, channels=3, size=84, filters=32)
    assert sum(p.numel() for p in network.parameters()) == 32901  # MAML's on miniImageNet


def test_the_batch_at_hand_normalizes():
    network = Conv4(ways=5, channels=1, size=28, filters=4).eval()
    assert not list(network.buffers())
    images = torch.randn(6, 1, 28, 28)
    torch.testing.assert_close(network(images), network(5 * images), rtol=1e-3, atol=1e-3)


def test_images_too_small():
    with pytest.raises(ValueError, match="at least 16 pixels wide, for four halvings, got 15"):
        Conv4(ways=5, channels=1, size=15)


@pytest.mark.parametrize("learner", ["maml", "anil", "protonet"])
def test_learners_train_it(learner):
    torch.manual_seed(0)
    network = Conv4(ways=3, channels=1, size=16, filters=4)
    made = {
        "maml": lambda: tr.MAML(network, lr=0.1, steps=2),
        "anil": lambda: tr.ANIL(network, head="head", lr=0.1, steps=2),
        "protonet": lambda: tr.ProtoNet(network.features),
    }[learner]()
    y = torch.arange(3).repeat(3, 2)
    batch = tr.TaskBatch(
        (torch.randn(3, 6, 1, 16, 16), y), (torch.randn(3, 6, 1, 16, 16), y), ways=3
    )
    loss_fn = nn.functional.cross_entropy
    encoder = tr.InputEncoder(network.features, dim=4)
    tr.TRLearner(encoder=encoder, loss_fn=loss_fn, align="sinkhorn")(made, batch).loss.backward()
    for name, parameter in network.features.named_parameters():
        if not name.endswith("0.bias"):  # which BatchNorm undoes
            assert parameter.grad.abs().sum() > 0, name
