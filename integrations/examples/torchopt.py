"""MAML on torchopt with TRLearner: ``python -m trlearner.integrations.examples.torchopt``."""

import torch
import torchopt
from torch.nn.functional import mse_loss
from trlearner.integrations.examples.sinusoids import meta_batch, network, tell
from trlearner.integrations.torchopt import adapted

import trlearner as tr


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    net = network()
    inner = torchopt.MetaSGD(net, lr=0.02)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=32, features=1, targets=1))
    parameters = [*net.parameters(), *reg.parameters()]
    optimizer = torch.optim.Adam(parameters)
    for step in range(steps):
        batch, tasks, losses = meta_batch(), reg.collect(), []
        start = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        inner_start = torchopt.extract_state_dict(inner, by="reference")
        for x, y, xq, yq in batch:
            for _ in range(2):
                inner.step(mse_loss(net(x), y))
            tasks.add(adapted(net), support=(x, y), query=(xq, yq))
            losses.append(mse_loss(net(xq), yq))
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(inner, inner_start)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        (loss + tasks.penalty()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        tell(step, loss, tasks)


if __name__ == "__main__":
    main()
