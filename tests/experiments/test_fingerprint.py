import torch
from trlearner.experiments.data.models.fingerprint import FingerprintNet


def test_sizes_and_parts():
    net = FingerprintNet()
    assert [name for name, _ in net.named_children()] == ["features", "head"]
    assert sum(p.numel() for p in net.parameters()) == 1025 * 500 + 501 * 500 + 501
    x = torch.rand(3, 7, 1024).round()
    assert net(x).shape == (3, 7, 1)
    assert net.features(x).shape == (3, 7, 500)


def test_a_compound_is_predicted_without_regard_to_the_others():
    net, x = FingerprintNet(64, 16), torch.rand(9, 64).round()
    torch.testing.assert_close(net(x)[:4], net(x[:4]), rtol=1e-5, atol=1e-6)
