"""MAML on torch.func with TRLearner: ``python -m trlearner.integrations.examples.functional``."""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import mse_loss
from trlearner.integrations.examples.sinusoids import meta_batch, network, stacked, tell
from trlearner.integrations.functional import adapted

import trlearner as tr

Params = dict[str, Tensor]


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    net = network()
    params = dict(net.named_parameters())
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=32, features=1, targets=1))
    optimizer = torch.optim.Adam([*net.parameters(), *reg.parameters()])

    def ask(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return mse_loss(functional_call(net, params, (x,)), y)

    def adapt(x: Tensor, y: Tensor) -> Params:
        fast = params
        for _ in range(2):
            gradient = grad(ask)(fast, x, y)
            fast = {name: p - 0.02 * gradient[name] for name, p in fast.items()}
        return fast

    for step in range(steps):
        x, y, xq, yq = stacked(meta_batch())
        tasks, fast = reg.collect(), vmap(adapt)(x, y)
        for i, model in enumerate(adapted(net, fast)):
            tasks.add(model, support=(x[i], y[i]), query=(xq[i], yq[i]))
        loss = vmap(ask)(fast, xq, yq).mean()
        optimizer.zero_grad()
        (loss + tasks.penalty()).backward()
        torch.nn.utils.clip_grad_norm_([*net.parameters(), *reg.parameters()], 1.0)
        optimizer.step()
        tell(step, loss, tasks)


if __name__ == "__main__":
    main()
