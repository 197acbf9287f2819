"""MAML on higher with TRLearner: ``python -m trlearner.integrations.examples.higher``."""

import higher
import torch
from torch.nn.functional import mse_loss
from trlearner.integrations.examples.sinusoids import meta_batch, network, tell
from trlearner.integrations.higher import adapted

import trlearner as tr


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    net = network()
    inner = torch.optim.SGD(net.parameters(), lr=0.02)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=32, features=1, targets=1))
    optimizer = torch.optim.Adam([*net.parameters(), *reg.parameters()])
    for step in range(steps):
        batch, tasks, loss = meta_batch(), reg.collect(), torch.zeros(())
        for x, y, xq, yq in batch:
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fnet, diffopt):
                for _ in range(2):
                    diffopt.step(mse_loss(fnet(x), y))
                tasks.add(adapted(fnet), support=(x, y), query=(xq, yq))
                loss = loss + mse_loss(fnet(xq), yq) / len(batch)
        optimizer.zero_grad()
        (loss + tasks.penalty()).backward()
        torch.nn.utils.clip_grad_norm_([*net.parameters(), *reg.parameters()], 1.0)
        optimizer.step()
        tell(step, loss, tasks)


if __name__ == "__main__":
    main()
