"""What else a user could take, in plain PyTorch or by its own library, written as that documents it.

None of them has a relation term, so there is nothing to compare our rows with TRLearner to. Each function
builds one contender and imports what it needs; what is not installed is left out, with the reason.
`jax` has a file of its own.
"""

from __future__ import annotations

import itertools
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import batch_norm
from trlearner.experiments.bench.contender import Build, Contender, of_torch
from trlearner.experiments.bench.in_jax import jax_jit
from trlearner.experiments.bench.stub import learn2learn_maml
from trlearner.experiments.bench.workload import OUTER_RATE, Workload


def adam(net: nn.Module) -> torch.optim.Optimizer:
    """The outer optimizer of every contender."""
    return torch.optim.Adam(net.parameters(), lr=OUTER_RATE, fused=True)


def plain_higher(workload: Workload) -> Contender:
    """A loop on `higher`, after its examples/maml-omniglot.py."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher
    net, loss, tasks = workload.net(), workload.loss, workload.tasks()
    outer, inner = adam(net), torch.optim.SGD(net.parameters(), lr=workload.rate)

    def step() -> None:
        outer.zero_grad()
        for xs, ys, xq, yq in tasks:
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fnet, diffopt):
                for _ in range(workload.steps):
                    diffopt.step(loss(fnet(xs), ys))
                (loss(fnet(xq), yq) / len(tasks)).backward()
        outer.step()

    return of_torch(step, net)


def plain_loop(workload: Workload) -> Contender:
    """A loop over tasks with nothing but `torch.func.functional_call` and `torch.autograd.grad`."""
    net, loss, tasks = workload.net(), workload.loss, workload.tasks()
    outer = adam(net)

    def step() -> None:
        outer.zero_grad()
        for xs, ys, xq, yq in tasks:
            fast: dict[str, Tensor] = dict(net.named_parameters())
            for _ in range(workload.steps):
                inner = loss(functional_call(net, fast, (xs,)), ys)
                grads = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
                fast = {
                    n: p - workload.rate * g for (n, p), g in zip(fast.items(), grads, strict=True)
                }
            (loss(functional_call(net, fast, (xq,)), yq) / len(tasks)).backward()
        outer.step()

    return of_torch(step, net)


class Normalized(nn.Module):
    """BatchNorm with batch statistics whose scale and shift are separate operations.

    Inside ``vmap(grad)`` the second-order gradient of an affine `nn.BatchNorm2d` is wrong without a word: by
    3e-3 on Conv-4, in float64 as well, as finite differences tell (torch 2.13; cf. pytorch/functorch#534).
    """

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        normal = batch_norm(x, None, None, training=True, eps=self.eps)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def mended(net: nn.Sequential) -> nn.Sequential:
    """The same network, and parameters, for ``vmap(grad)``; its layers' own layers are replaced in place."""

    def mend(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.BatchNorm2d):
            return Normalized(module)
        for name, child in module.named_children():
            setattr(module, name, mend(child))
        return module

    return nn.Sequential(*map(mend, net))


def vmap_of_grad(workload: Workload) -> Contender:
    """All tasks at once by `torch.func`, after PyTorch's functorch examples of MAML."""
    net, loss, data = mended(workload.net()), workload.loss, workload.tensors()
    outer, params = adam(net), dict(net.named_parameters())

    def fit(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(net, params, (x,)), y)

    def task(xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        fast = params
        for _ in range(workload.steps):
            grads = grad(fit)(fast, xs, ys)
            fast = {name: fast[name] - workload.rate * grads[name] for name in fast}
        return fit(fast, xq, yq)

    def step() -> None:
        outer.zero_grad()
        vmap(task)(*data).mean().backward()
        outer.step()

    return of_torch(step, net)


def torchopt_metasgd(workload: Workload) -> Contender:
    """`torchopt.MetaSGD`, after its examples/few-shot/maml_omniglot.py."""
    import torchopt

    net, loss, tasks = workload.net(), workload.loss, workload.tasks()
    outer, inner = adam(net), torchopt.MetaSGD(net, lr=workload.rate)

    def step() -> None:
        outer.zero_grad()
        before = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner, by="reference")
        losses = []
        for xs, ys, xq, yq in tasks:
            for _ in range(workload.steps):
                inner.step(loss(net(xs), ys))
            losses.append(loss(net(xq), yq))
            torchopt.recover_state_dict(net, before)
            torchopt.recover_state_dict(inner, state)
        torch.mean(torch.stack(losses)).backward()
        outer.step()

    return of_torch(step, net)


def learn2learn(workload: Workload) -> Contender:
    """`learn2learn.algorithms.MAML`, after its examples/vision/maml_omniglot.py."""
    net, loss, tasks = workload.net(), workload.loss, workload.tasks()
    maml = learn2learn_maml().MAML(net, lr=workload.rate)
    outer = torch.optim.Adam(maml.parameters(), lr=OUTER_RATE, fused=True)

    def step() -> None:
        outer.zero_grad()
        for xs, ys, xq, yq in tasks:
            learner = maml.clone()
            for _ in range(workload.steps):
                learner.adapt(loss(learner(xs), ys))
            loss(learner(xq), yq).backward()
        for p in maml.parameters():
            p.grad.mul_(1.0 / len(tasks))
        outer.step()

    return of_torch(step, net)


def parallel_metalearn(workload: Workload) -> Contender:
    """`metalearn.algorithms.MAML` with its ``vmap`` backend, after its README.

    Its rate is learned by default, here it is not. Its `ModelTranslator` fails on BatchNorm; its own layer
    makes the step 1.6 times as long as `Normalized` does, which takes its place.
    """
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import BaseLoss
    from metalearn.model_wrappers import MAML_Model

    class Part(nn.Sequential):
        def forward(self, x: Tensor, **_: object) -> Tensor:
            return super().forward(x)

    class Loss(BaseLoss):
        def forward(self, out_dict, targets, model_states=None, **_):  # type: ignore[no-untyped-def]
            value = workload.loss(out_dict["logits"], targets["labels"])
            return value, value.detach()  # the second is a metric, of which there is none

    net = mended(workload.net())
    model = MAML_Model(backbone=Part(*net[:-1]), head=Part(net[-1]))
    maml = MAML(
        model=model,
        optimizer=adam(model),
        inner_optimizer=InnerSGD(model.get_fast_weights(), inner_lr=workload.rate, learn_lr=False),
        support_loss_fn=Loss(),
        inner_steps=workload.steps,
        device=torch.device("cpu"),
    )
    xs, ys, xq, yq = workload.tensors()
    batches = itertools.repeat((xs, {"labels": ys}, xq, {"labels": yq}))
    return of_torch(lambda: maml.step(batches), net)


BASE = "plain higher"
JAX = "jax.jit"
PEERS: dict[str, Build] = {
    BASE: plain_higher,
    "plain functional_call": plain_loop,
    "vmap(grad)": vmap_of_grad,
    "torchopt": torchopt_metasgd,
    "learn2learn": learn2learn,
    "parallel-metalearn": parallel_metalearn,
    JAX: jax_jit,
}
"""How each is built, by name. Speeds are multiples of `BASE`'s."""
