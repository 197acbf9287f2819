"""MAML on torchmeta with TRLearner: ``python -m trlearner.integrations.examples.torchmeta``."""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torchmeta.modules import MetaLinear, MetaSequential
from torchmeta.utils.gradient_based import gradient_update_parameters
from trlearner.integrations.examples.sinusoids import meta_batch, stacked, tell
from trlearner.integrations.torchmeta import adapted

import trlearner as tr


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    net = MetaSequential(MetaLinear(1, 40), nn.ReLU(), MetaLinear(40, 1))
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=32, features=1, targets=1))
    optimizer = torch.optim.Adam([*net.parameters(), *reg.parameters()])
    for step in range(steps):
        x, y, xq, yq = stacked(meta_batch())
        batch = {"train": (x, y), "test": (xq, yq)}  # as torchmeta's loaders return it
        tasks, loss = reg.collect(), torch.zeros(())
        for x, y, xq, yq in zip(*batch["train"], *batch["test"], strict=True):
            params = None
            for _ in range(2):
                inner_loss = mse_loss(net(x, params=params), y)
                params = gradient_update_parameters(net, inner_loss, params=params, step_size=0.02)
            tasks.add(adapted(net, params), support=(x, y), query=(xq, yq))
            loss = loss + mse_loss(net(xq, params=params), yq)
        loss = loss / len(batch["train"][0])
        optimizer.zero_grad()
        (loss + tasks.penalty()).backward()
        torch.nn.utils.clip_grad_norm_([*net.parameters(), *reg.parameters()], 1.0)
        optimizer.step()
        tell(step, loss, tasks)


if __name__ == "__main__":
    main()
