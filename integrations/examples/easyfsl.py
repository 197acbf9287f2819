"""ProtoNets on easyfsl with TRLearner: ``python -m trlearner.integrations.examples.easyfsl``.

A class is a noisy sinusoid, whose curve is the input. Episodes are drawn here, in the form of easyfsl's: its
`TaskSampler` (1.5.0) does not start on a torch whose `Sampler` takes no arguments (2.13).
"""

from typing import Any

import torch
from easyfsl.methods import PrototypicalNetworks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trlearner.integrations.easyfsl import adapted, samples
from trlearner.integrations.examples.sinusoids import curves, tell

import trlearner as tr

WAYS, TOGETHER = 5, 4


def episode_of(data: Tensor, shots: int = 1) -> tuple[Any, ...]:
    """Of curves ``[classes, samples, points]``, what a loader with `TaskSampler` returns."""
    classes = torch.randperm(len(data))[:WAYS]
    chosen = data[classes][:, torch.randperm(data.shape[1])[: shots + 5]]
    labels = torch.arange(WAYS)[:, None].expand(chosen.shape[:2])
    support, query = (chosen[:, :shots], labels[:, :shots]), (chosen[:, shots:], labels[:, shots:])
    return *(t.flatten(0, 1) for t in (*support, *query)), classes.tolist()


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    data = curves()
    backbone = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    classifier = PrototypicalNetworks(backbone)
    reg = tr.TRLearner(
        encoder=tr.InputEncoder(backbone, dim=16),
        loss_fn=cross_entropy,
        align="sinkhorn",
    )
    optimizer = torch.optim.Adam([*classifier.parameters(), *reg.parameters()])
    tasks, loss = reg.collect(ways=WAYS), torch.zeros(())
    for number in range(1, steps * TOGETHER + 1):
        episode = episode_of(data)
        images, labels, queries, answers, _ = episode
        classifier.process_support_set(images, labels)
        tasks.add(adapted(classifier), **samples(episode))
        loss = loss + cross_entropy(classifier(queries), answers) / TOGETHER
        if len(tasks) == TOGETHER:
            optimizer.zero_grad()
            (loss + tasks.penalty()).backward()
            optimizer.step()
            tell(number // TOGETHER - 1, loss, tasks)
            tasks, loss = reg.collect(ways=WAYS), torch.zeros(())


if __name__ == "__main__":
    main()
