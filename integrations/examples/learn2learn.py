"""MAML on learn2learn with TRLearner: ``python -m trlearner.integrations.examples.learn2learn``."""

import learn2learn as l2l
import torch
from torch.nn.functional import mse_loss
from trlearner.integrations.examples.sinusoids import meta_batch, network, tell
from trlearner.integrations.learn2learn import adapted

import trlearner as tr


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    maml = l2l.algorithms.MAML(network(), lr=0.02)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=32, features=1, targets=1))
    optimizer = torch.optim.Adam([*maml.parameters(), *reg.parameters()])
    for step in range(steps):
        batch, tasks, loss = meta_batch(), reg.collect(), torch.zeros(())
        for x, y, xq, yq in batch:
            learner = maml.clone()
            for _ in range(2):
                learner.adapt(mse_loss(learner(x), y))
            tasks.add(adapted(learner), support=(x, y), query=(xq, yq))
            loss = loss + mse_loss(learner(xq), yq) / len(batch)
        optimizer.zero_grad()
        (loss + tasks.penalty()).backward()
        torch.nn.utils.clip_grad_norm_([*maml.parameters(), *reg.parameters()], 1.0)
        optimizer.step()
        tell(step, loss, tasks)


if __name__ == "__main__":
    main()
