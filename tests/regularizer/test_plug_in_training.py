"""What training loops do besides: accumulation, clipping, lower precision and gradient scalers."""

from collections.abc import Iterable
from dataclasses import replace

import contracts
import pytest
import torch
from contracts import close
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import trlearner as tr
from regularizer.test_collect import adapt, by_hand, engines, regularizer
from regularizer.test_two_phase import functions
from trlearner.regularizer.collect import Collected


def parameters(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters()]


def flat(gradients: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients if g is not None])


def of_engines(*batches: tr.TaskBatch) -> Tensor:
    """The gradient of the mean loss over meta-batches, by our own engine."""
    model = contracts.net()
    reg = regularizer(model)
    loss = torch.stack([engines(model, reg, batch).loss for batch in batches]).mean()
    return flat(contracts.gradients(loss, model, reg).values())


def single(batch: tr.TaskBatch) -> tuple[nn.Module, tr.TRLearner, tr.TaskBatch]:
    """The same problem in float32."""
    model = contracts.net()
    return model.float(), regularizer(model).float(), batch.to(torch.float32)


# ---- accumulation and clipping -------------------------------------------------------------------


def test_gradients_accumulate_over_meta_batches() -> None:
    batches = [contracts.regression_batch(seed) for seed in (0, 1)]
    model = contracts.net()
    reg = regularizer(model)
    for batch in batches:
        loss, _ = by_hand(model, reg, batch)
        (loss / len(batches)).backward()
    close(flat(p.grad for p in parameters(model, reg)), of_engines(*batches), 1e-10)


def of_own_losses(model: nn.Module, reg: tr.TRLearner, batch: tr.TaskBatch, two: bool) -> Collected:
    """Tasks that were added with their loss, or in two phases."""
    tasks = reg.collect()
    adapting, predict = functions(model)
    for support, query in contracts.tasks_of(batch):
        if two:
            tasks.add_task(adapting, predict, support=support, query=query)
        else:
            fmodel = adapt(model, *support)
            loss = mse_loss(fmodel(query[0]), query[1])
            tasks.add(fmodel, support=support, query=query, loss=loss)
    return tasks


@pytest.mark.parametrize("two", [False, True])
def test_gradients_accumulate_by_a_scale(two: bool) -> None:
    batches = [contracts.regression_batch(seed) for seed in (0, 1)]
    model = contracts.net()
    reg = regularizer(model)
    found = [of_own_losses(model, reg, batch, two).backward(scale=1 / 2) for batch in batches]
    close(flat(p.grad for p in parameters(model, reg)), of_engines(*batches), 1e-10)
    twin = contracts.net()
    close(found[0], engines(twin, regularizer(twin), batches[0]).loss.detach(), 1e-10)


@pytest.mark.parametrize("two", [False, True])
def test_own_losses_go_through_a_gradient_scaler(two: bool) -> None:
    batch, moved = contracts.regression_batch(), []
    for scaled in (True, False):
        model = contracts.net()
        reg = regularizer(model)
        optimizer = torch.optim.SGD(parameters(model, reg), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        of_own_losses(model, reg, batch, two).backward(scale=scaler.scale(torch.ones(())))
        if scaled:
            assert flat(p.grad for p in parameters(model, reg)).norm() > 100
        scaler.unscale_(optimizer)
        close(flat(p.grad for p in parameters(model, reg)), of_engines(batch), 1e-10)
        scaler.step(optimizer)
        scaler.update()
        moved.append(flat(p.detach() for p in parameters(model, reg)))
    close(*moved, 1e-12)


def test_the_regularizers_gradient_is_clipped_with_the_models() -> None:
    batch, model = contracts.regression_batch(), contracts.net()
    reg = regularizer(model)
    loss, _ = by_hand(model, reg, batch)
    loss.backward()
    wanted = of_engines(batch)
    norm = nn.utils.clip_grad_norm_(parameters(model, reg), 0.01, error_if_nonfinite=True)
    close(norm, wanted.norm(), 1e-10)
    assert norm > 0.01
    found = flat(p.grad for p in parameters(model, reg))
    close(found, wanted * 0.01 / (norm + 1e-6), 1e-10)
    assert flat(p.grad for p in reg.parameters()).norm() > 0


# ---- lower precision -----------------------------------------------------------------------------


def lowered(kind: str, enabled: bool) -> tuple[Collected, list[torch.dtype], Tensor]:
    """Collected tasks of a step under autocast, what the relation loss was given, and the gradient."""
    classes, seen = kind == "classes", list[torch.dtype]()
    own = cross_entropy if classes else mse_loss

    def watched(predictions: Tensor, targets: Tensor) -> Tensor:
        seen.append(predictions.dtype)
        return own(predictions, targets)

    model, reg, batch = single(contracts.class_batch() if classes else contracts.regression_batch())
    reg.loss_fn = watched
    reg.options = replace(reg.options, align="sinkhorn" if classes else "none")
    ways = contracts.OUTPUTS if classes else None
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        assert model(batch.query.x[0]).dtype == (torch.bfloat16 if enabled else torch.float32)
        loss, tasks = by_hand(model, reg, batch, own, ways=ways)
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in parameters(model, reg))
    return tasks, seen, flat(p.grad for p in parameters(model, reg))


@pytest.mark.unchecked
@pytest.mark.parametrize("kind", ["values", "classes"])
def test_under_autocast_similarities_and_mixtures_are_single_precision(kind: str) -> None:
    tasks, seen, _ = lowered(kind, True)
    assert tasks.term is not None
    assert tasks.term.relations.dtype == tasks.term.weights.dtype == torch.float32
    assert seen and set(seen) == {torch.float32}


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_under_autocast_the_gradient_is_about_the_same(kind: str) -> None:
    (_, _, half), (_, _, whole) = lowered(kind, True), lowered(kind, False)
    assert 0 < (half - whole).norm() < 0.05 * whole.norm()


def test_a_gradient_scaler_scales_once_and_unscales_once() -> None:
    batch, moved = contracts.regression_batch(), []
    for scaled in (True, False):
        model = contracts.net()
        reg = regularizer(model)
        optimizer = torch.optim.SGD(parameters(model, reg), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        loss, _ = by_hand(model, reg, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters(model, reg), 1.0)
        scaler.step(optimizer)
        scaler.update()
        moved.append(flat(p.detach() for p in parameters(model, reg)))
    close(*moved, 1e-12)
    start = contracts.net()
    assert not torch.equal(moved[0][: start.body.weight.numel()], start.body.weight.flatten())


def test_an_overflow_skips_the_step_and_the_next_one_is_made() -> None:
    batch, model = contracts.regression_batch(), contracts.net()
    reg = regularizer(model)
    optimizer = torch.optim.SGD(parameters(model, reg), lr=0.1)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=2.0**12), flat(parameters(model, reg))
    for factor, skipped in ((torch.inf, True), (1.0, False)):
        optimizer.zero_grad()
        loss, _ = by_hand(model, reg, batch)
        scaler.scale(factor * loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(parameters(model, reg)), before) == skipped
    assert scaler.get_scale() == 2.0**11
