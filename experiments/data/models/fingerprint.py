"""The network for fingerprints: two hidden layers, one number."""

from __future__ import annotations

from torch import Tensor, nn


class FingerprintNet(nn.Module):
    """Fingerprints to an activity: ``[samples, bits]`` to ``[samples, 1]``.

    Two fully connected hidden layers of 500 with leaky ReLUs, as in MetaMix (arXiv 2007.13040) and ATS
    (arXiv 2110.14057). Deviations from their code: no batch normalization, for a prediction should
    not depend on the other queries, nor on padding; and no leaky ReLU after the last layer.

    Args:
        bits: Of a fingerprint.
        hidden: The width of the hidden layers.
    """

    def __init__(self, bits: int = 1024, hidden: int = 500) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(bits, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU()
        )
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
