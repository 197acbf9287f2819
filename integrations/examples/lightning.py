"""MAML in a LightningModule with TRLearner: ``python -m trlearner.integrations.examples.lightning``."""

from collections.abc import Callable

import lightning
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from trlearner.integrations.examples.sinusoids import meta_batch, network, stacked, tell
from trlearner.integrations.lightning import adaptation, check_optimizers

import trlearner as tr


def adapt(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The inner loop, as it was."""
    fast: dict[str, Tensor] = dict(net.named_parameters())
    for _ in range(2):
        loss = mse_loss(functional_call(net, fast, (x,)), y)
        gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {n: p - 0.02 * g for (n, p), g in zip(fast.items(), gradient, strict=True)}
    return lambda x: functional_call(net, fast, (x,))


class Maml(lightning.LightningModule):
    def __init__(self, net: nn.Module, reg: tr.TRLearner) -> None:
        super().__init__()
        self.net, self.reg = net, reg

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        tasks, losses = self.reg.collect(), []
        for x, y, xq, yq in zip(*batch, strict=True):
            model = adapt(self.net, x, y)
            tasks.add(model, support=(x, y), query=(xq, yq))
            losses.append(mse_loss(model(xq), yq))
        loss, penalty = torch.stack(losses).mean(), tasks.penalty()
        tell(index, loss, tasks)
        return loss + penalty

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        with adaptation(batch) as (xs, ys, xqs, yqs):
            rows = zip(xs, ys, xqs, yqs, strict=True)
            losses = [mse_loss(adapt(self.net, x, y)(xq), yq) for x, y, xq, yq in rows]
        self.log("val_loss", torch.stack(losses).mean().detach())

    def on_fit_start(self) -> None:
        check_optimizers(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def main(steps: int = 101) -> None:
    torch.manual_seed(0)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=32, features=1, targets=1))
    train, val = (
        DataLoader([stacked(meta_batch()) for _ in range(n)], batch_size=None) for n in (steps, 10)
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Maml(network(), reg), train, val)
    print(f"adapted, on other tasks: {trainer.callback_metrics['val_loss'].item():.3f}")


if __name__ == "__main__":
    main()
