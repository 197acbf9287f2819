"""A LightningModule with the relation term, trained and validated by a Trainer."""

import pathlib
from typing import Any

import contracts
import lightning
import pytest
import torch
from contracts import close
from integration import TOLERANCES, equal, example_runs, names, rows
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from trlearner.integrations import lightning as integration
from trlearner.integrations.lightning import adaptation, check_optimizers

import trlearner as tr
from engines.test_memory import ALLOWED, resident
from regularizer.test_collect import adapt, engines, regularizer

# lightning 2.6 asks torch 2.13 for its trees in a way that torch calls old; the other is our documented
# module without a validation step, which is given data for it all the same.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated",
    "ignore:You passed in a .val_dataloader. but have no",
)

SILENT = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Module(lightning.LightningModule):
    """The user's: with a regularizer, or without."""

    def __init__(self, net: nn.Module, reg: tr.TRLearner | None) -> None:
        super().__init__()
        self.net, self.reg = net, reg
        self.gradients: list[dict[str, Tensor]] = []
        self.validated: list[Tensor] = []
        self.memory: list[int] = []
        self.inference: set[bool] = set()

    def training_step(self, batch: Any, index: int) -> Tensor:
        tasks, losses = self.reg and self.reg.collect(), []
        for x, y, xq, yq in zip(*batch, strict=True):
            model = adapt(self.net, x, y)
            if tasks is not None:
                tasks.add(model, support=(x, y), query=(xq, yq))
            losses.append(mse_loss(model(xq), yq))
        loss = torch.stack(losses).mean()
        return loss if tasks is None else loss + tasks.penalty()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        named = [(n, p) for n, p in self.named_parameters() if p.grad is not None]
        self.gradients = [*self.gradients[-1:], {n: p.grad.clone() for n, p in named}]

    def on_train_batch_end(self, *_: Any) -> None:
        self.memory.append(resident() if len(self.memory) in (100, 499) else 0)

    def validation_step(self, batch: Any, index: int) -> None:
        assert not torch.is_grad_enabled()
        self.inference.add(torch.is_inference_mode_enabled())
        with adaptation(batch) as (xs, ys, xqs, yqs):
            for x, y, xq, yq in zip(xs, ys, xqs, yqs, strict=True):
                self.validated.append(mse_loss(adapt(self.net, x, y)(xq), yq).detach())

    def on_fit_start(self) -> None:
        check_optimizers(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def stacked(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.stack(parts).to(dtype) for parts in zip(*rows(), strict=True))


def fitted(module: Module, steps: int = 1, validate: bool = False, **options: Any) -> Module:
    dtype = next(module.parameters()).dtype
    data = DataLoader([stacked(dtype)] * steps, batch_size=None)
    limit = {} if validate else {"limit_val_batches": 0}
    trainer = lightning.Trainer(max_epochs=1, **SILENT, **limit, **options)
    trainer.fit(module, data, DataLoader([stacked()], batch_size=None))
    return module


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_gradient_is_the_engines(dtype: torch.dtype) -> None:
    batch = contracts.regression_batch().to(dtype)
    model, twin = contracts.net().to(dtype), contracts.net().to(dtype)
    reg, other = regularizer(model).to(dtype), regularizer(twin).to(dtype)
    found = fitted(Module(model, reg)).gradients[0]
    expected = engines(twin, other, batch).loss
    wanted = {
        name.replace("0.", "net.", 1).replace("1.", "reg.", 1): g
        for name, g in contracts.gradients(expected, twin, other).items()
    }
    equal(found, {name: wanted[name] for name in found}, TOLERANCES[dtype])
    assert sum(name.startswith("reg.") for name in found) == len(list(reg.parameters()))


def test_nothing_changes_without_the_term() -> None:
    results = []
    for plugged in (True, False):
        model = contracts.net()
        fitted(Module(model, regularizer(model, lam=0.0) if plugged else None), steps=5)
        results.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(model.body.weight, contracts.net().body.weight)


def test_validation_adapts_though_gradients_are_off() -> None:
    """Before and after a step in ``fit``, under no_grad, and in ``validate``, in inference mode."""
    model = contracts.net()
    module = Module(model, regularizer(model))
    fitted(module, validate=True, num_sanity_val_steps=1)
    assert module.inference == {False}
    module.trainer.validate(module, DataLoader([stacked()], batch_size=None), verbose=False)
    assert module.inference == {False, True}
    found = torch.stack(module.validated).reshape(3, contracts.TASKS)
    for row, net in zip(found, (contracts.net(), model, model), strict=True):
        wanted = [mse_loss(adapt(net, x, y)(xq), yq).detach() for x, y, xq, yq in rows()]
        close(row, torch.stack(wanted), 1e-12)
    assert found[1].mean() < found[0].mean()


def test_without_it_validation_cannot_adapt() -> None:
    """The reason for `adaptation`: enable_grad does not leave inference mode."""
    x, y, _, _ = rows()[0]
    with (
        torch.inference_mode(),
        torch.enable_grad(),
        pytest.raises(RuntimeError, match="does not require grad"),
    ):
        adapt(contracts.net(), x.clone(), y)


@pytest.mark.parametrize("kind", ["tuple", "dict", "TaskBatch"])
def test_batches_of_every_kind_become_usable(kind: str) -> None:
    with torch.inference_mode():
        x, y, xq, yq = (t.clone() for t in stacked())
        whole = tr.TaskBatch(support=(x, y), query=(xq, yq), ids=list("abcd"))
        batch: Any = {"tuple": (x, y), "dict": {"x": x, "n": 3}, "TaskBatch": whole}[kind]
        with adaptation(batch) as found:
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            tensors = {
                "tuple": lambda: list(found),
                "dict": lambda: [found["x"]],
                "TaskBatch": lambda: [*found.support, *found.query],
            }[kind]()
            assert not any(t.is_inference() for t in tensors if t is not None)
        assert torch.is_inference_mode_enabled()
    assert kind != "dict" or found["n"] == 3
    assert kind != "TaskBatch" or found.ids == tuple("abcd")


def test_it_is_watched_beside_lightnings_own_curves(tmp_path: pathlib.Path) -> None:
    class Watched(Module):
        def on_fit_start(self) -> None:
            self.reg.monitor = tr.RelationMonitor(self.logger.experiment, every=1)

    model, logger = contracts.net(), TensorBoardLogger(tmp_path)
    trainer = lightning.Trainer(
        **{**SILENT, "logger": logger, "max_epochs": 1, "log_every_n_steps": 1}
    )
    batches = DataLoader([stacked()] * 3, batch_size=None)
    trainer.fit(Watched(model, regularizer(model)), batches, batches)
    events = EventAccumulator(logger.log_dir).Reload()
    points = events.Scalars("trlearner.loss/relation")
    assert [point.step for point in points] == [0, 1, 2]
    assert "trlearner.relations/clustered" in events.Tags()["images"]


def test_a_regularizer_that_no_optimizer_has_is_told() -> None:
    class Forgetful(Module):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

    model = contracts.net()
    with pytest.raises(ValueError, match="reg.relation.weight.*: no optimizer has these. Give it"):
        fitted(Forgetful(model, regularizer(model)))


def test_clipping_and_accumulation_are_the_trainers() -> None:
    model = contracts.net()
    module = fitted(
        Module(model, regularizer(model)),
        steps=4,
        accumulate_grad_batches=2,
        gradient_clip_val=1e-3,
    )
    norms = [torch.cat([g.flatten() for g in one.values()]).norm() for one in module.gradients]
    assert module.trainer.global_step == 2
    assert all(norm > 1e-3 for norm in norms)  # before clipping
    moved = torch.cat(
        [
            (p - q).flatten()
            for p, q in zip(model.parameters(), contracts.net().parameters(), strict=True)
        ]
    )
    assert 0 < moved.norm() <= 2 * 0.01 * 1e-3 * 1.001


def test_the_documented_modules_run() -> None:
    assert integration.__doc__ is not None
    space = names(contracts.net(), regularizer(contracts.net()))
    space |= {"adapt": adapt, "adaptation": adaptation, "check_optimizers": check_optimizers}
    space["lightning"] = lightning
    for part in integration.__doc__.split("::\n\n")[1:]:
        lines = [line for line in part.splitlines() if not line or line.startswith("    ")]
        exec("\n".join(line[4:] for line in lines), space)
    model, results = contracts.net(), []
    for module in (
        space["Maml"](contracts.net()),
        space["Regularized"](model, regularizer(model, lam=0.0)),
    ):
        fitted(module, validate="Regularized" in type(module).__name__)
        results.append(list(module.net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert "val_loss" in module.trainer.callback_metrics


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example_runs("lightning", capsys)


@pytest.mark.slow
def test_memory_is_flat() -> None:
    model = contracts.net()
    module = fitted(Module(model, regularizer(model)), steps=500)
    grown = module.memory[499] - module.memory[100]
    assert grown < ALLOWED, f"{grown / 2**20:.1f} MiB"
