"""`doctor`: a check-up of a model before second-order meta-learning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from trlearner.base.functional import random_state_kept
from trlearner.base.types import LossFn
from trlearner.diagnostics.doctor import notes
from trlearner.diagnostics.doctor.explain import explain
from trlearner.diagnostics.doctor.finding import KINDS, Diagnosis, Finding
from trlearner.diagnostics.doctor.record import Node, Recorder, kept
from trlearner.diagnostics.doctor.search import Search
from trlearner.diagnostics.doctor.trial import Patient, Trial
from trlearner.engines import loop
from trlearner.engines.coupling import examine_learner
from trlearner.engines.task_learner import GradientTaskLearner
from trlearner.learners.maml import MAML
from trlearner.learners.protocol import Learner
from trlearner.regularizer.regularizer import TRLearner
from trlearner.tasks.batch import TaskBatch, check_batch
from trlearner.tasks.nested import as_data, leaves, raw, shown
from trlearner.tasks.samples import Samples
from trlearner.tasks.targets import Misfit, check_targets


def doctor(
    model: nn.Module | Learner, batch: TaskBatch, loss_fn: LossFn | None = None
) -> Diagnosis:
    """Every layer that will not work, or only slowly, in a meta-step: by name, with the fix.

    It finds by doing: a copy of the model runs on the batch's first task, then meta-steps of it are
    tried (second derivatives, ``torch.vmap``, tracing), and where one fails, each layer is tried alone on
    what it was given, broken ones replaced by stand-ins. Nothing of what is passed is changed.

    Args:
        model: The user's model, as for `MAML`; or a learner, whose own meta-step then counts (a layer
            that ANIL does not adapt needs no second derivative).
        batch: Tasks of the kind that it will be trained on.
        loss_fn: ``(predictions [samples, ...], targets [samples, ...]) -> scalar``; by default
            cross entropy for integer targets, the mean squared error for others.

    Raises:
        TypeError: Something is not what it should be.
        ValueError: The model cannot be copied.

    Example:
        >>> import trlearner as tr
        >>> x, y = torch.rand(4, 5, 2), torch.rand(4, 5, 2)
        >>> batch = TaskBatch(support=(x, y), query=(x, y))
        >>> print(doctor(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), batch))
        ok: nothing found in 2 layers
        >>> class Gate(nn.Module):
        ...     def forward(self, x):
        ...         return x if x.mean() > 0 else -x
        >>> print(doctor(nn.Sequential(nn.Linear(2, 2), Gate()), batch))
        ok, but: 1 slow, in 2 layers
        1. slow: 1 (batched, compiled)
           Gate branches on the values of tensors, which cannot be run for all tasks at once.
           Fix: use torch.where, or leave it: engine='auto' runs one task at a time ('loop').
    """
    _check(model, batch, loss_fn)
    with torch.inference_mode(False), torch.enable_grad(), random_state_kept(batch.support.x):
        patient = _copy(model, batch, loss_fn or _default_loss)
        names = _names(patient)
        network = patient.learner.model
        layers = sum(1 for m in network.modules() if next(m.children(), None) is None)
        if lazy := [*_lazy(patient, names)]:
            return _diagnosis(lazy, layers)
        masked = batch.support.mask is not None or batch.query.mask is not None
        found = [*_examine(patient, names, masked)]
    return _diagnosis(found, layers)


def _check(model: object, batch: object, loss_fn: object) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, TRLearner):
        raise TypeError(
            f"model must be an nn.Module or a learner, got {type(model).__name__}. Pass the network "
            "that adapts, or the learner around it, e.g. tr.MAML(model)."
        )
    check_batch(batch)
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function (predictions, targets) -> scalar, got "
            f"{type(loss_fn).__name__}. Pass e.g. torch.nn.functional.mse_loss, or leave it out."
        )


def _default_loss(predictions: Any, targets: Any) -> Tensor:
    if not isinstance(predictions, Tensor) or not isinstance(targets, Tensor):
        raise TypeError(
            "model and batch have several tensors for predictions or targets, "
            f"{shown(as_data(predictions))} and {shown(as_data(targets))}: pass a loss_fn that "
            "takes them, or tr.MAML(model, output=...)"
        )
    if not targets.is_floating_point() and predictions.ndim == targets.ndim + 1:
        return F.cross_entropy(predictions, targets)
    check_targets(F.mse_loss, predictions, targets.to(predictions.dtype))
    if predictions.shape == targets.shape:
        return F.mse_loss(predictions, targets.to(predictions.dtype))
    return predictions.square().sum()


class _Loss(nn.Module):
    """The loss as a layer."""

    def __init__(self, loss_fn: LossFn) -> None:
        super().__init__()
        self.given = loss_fn

    def forward(self, predictions: Any, targets: Any) -> Tensor:
        return self.given(predictions, targets)


def _copy(model: nn.Module, batch: TaskBatch, loss_fn: LossFn) -> Patient:
    # What a forward left behind (an old weight norm's weight, say) is no leaf, which torch won't copy.
    left = [
        value
        for m in model.modules()
        for value in vars(m).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    memo = {id(t): t.detach().clone() for t in left}
    try:
        copied = copy.deepcopy(model, memo)
        loss_fn = copy.deepcopy(loss_fn)
    except Exception as error:
        raise ValueError(
            f"model and loss_fn must be copyable, for only copies are examined; copy.deepcopy said: {error}. "
            "Take what cannot be copied out of them."
        ) from error
    learner = copied if isinstance(copied, Learner) else MAML(copied, steps=1)
    support, query = (_first(samples) for samples in (batch.support, batch.query))
    adapts = isinstance(learner, GradientTaskLearner) and bool(learner.start(learner.state()))
    return Patient(learner, support, query, _Loss(loss_fn), adapts)


def _first(samples: Samples) -> Samples:
    x, y = (t.clone()[None] for t in samples.real(0))
    return Samples.unchecked(x, y, None, samples.ways)


def _names(patient: Patient) -> dict[nn.Module, str]:
    """A name for each module; for one with several, all of them."""
    found: dict[nn.Module, list[str]] = {}
    for path, m in patient.learner.model.named_modules(remove_duplicate=False):
        # A parametrization is a part of the layer whose weight it makes.
        path = f".{path}".split(".parametrizations")[0].removeprefix(".")
        found.setdefault(m, []).append(path or "(model)")
    names = {
        m: paths[0] + (f" (also {', '.join(paths[1:])})" if paths[1:] else "")
        for m, paths in found.items()
    }
    assert isinstance(patient.loss_fn, nn.Module)
    return {**names, patient.loss_fn: "loss_fn"}


def _lazy(patient: Patient, names: dict[nn.Module, str]) -> Iterator[Finding]:
    for m, name in names.items():
        if any(
            t is not None and is_lazy(t) for t in (*m._parameters.values(), *m._buffers.values())
        ):
            yield Finding(
                name,
                "fails",
                f"{type(m).__name__} has parameters that still wait for their shape.",
                "call the model once on one task's inputs, model(batch.support.x[0]), before anything else.",
            )


def _examine(patient: Patient, names: dict[nn.Module, str], masked: bool) -> Iterator[Finding]:
    learner, model = patient.learner, patient.learner.model
    recorder, reached, crash = _record(patient, names)
    if isinstance(crash, Misfit):  # which every trial would meet again
        yield Finding("loss_fn", "fails", crash.problem, crash.fix)
        return
    if crash is not None:
        yield _crashed(recorder, names, crash)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            examine_learner(learner, patient.support, patient.loss_fn)
    yield from notes.of_norms(model, names.__getitem__, masked)
    if patient.second_order:
        yield from notes.of_embeddings(model, names.__getitem__)
    yield from notes.of_writes(recorder.writes, names.__getitem__)
    ran = {m for m, node in recorder.nodes.items() if node.complete}
    yield from notes.of_parameters(model, names.__getitem__, ran, reached)
    if not patient.adapts and isinstance(learner, GradientTaskLearner):
        yield Finding(
            "(model)",
            "fails",
            f"{type(model).__name__} has no parameter that could adapt.",
            "give it one, or call .requires_grad_() on what is frozen.",
        )
    elif patient.support.x.is_cpu and isinstance(learner, GradientTaskLearner):
        moved = {id(t) for t in learner.start(learner.state()).values()}
        yield from notes.of_convolutions(model, names.__getitem__, moved)
    yield from _trials(patient, recorder.root, names)


def _record(
    patient: Patient, names: dict[nn.Module, str]
) -> tuple[Recorder, set[int] | None, Exception | None]:
    """The recorded forward, what its gradient reaches, and why it came to no end, if it did not."""
    learner, loss_fn = patient.learner, patient.loss_fn
    # The very tensors that are passed: the recorder follows them by identity.
    parts = [(s, s.x[0], s.y[0]) for s in (patient.support, patient.query)]
    data = [("inputs", t) for _, x, _ in parts for _, t in leaves(x)]
    data += [("targets", t) for _, _, y in parts for _, t in leaves(y)]
    recorder = Recorder(names, data)
    state = learner.state()
    losses = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner.prepare(patient.support)
        with warnings.catch_warnings(), kept(learner), recorder.recording():
            warnings.simplefilter("ignore")
            for samples, x, y in parts:
                features = learner.embed(state, x)
                start = loop.ENGINE.adapt(learner, state, features[None], samples, loss_fn, 0)
                fast = {name: t[0] for name, t in start.items()}
                recorder.adapting = True
                predictions = learner.predict(state, fast, features)
                assert isinstance(loss_fn, _Loss)
                check_targets(loss_fn.given, predictions, y)
                losses.append(loss_fn(raw(predictions), raw(y)))
                recorder.adapting = False
            recorder.root.complete = True
    except Exception as error:
        return recorder, None, error
    return recorder, _reached(losses[0], learner), None


def _reached(loss: Tensor, learner: Learner) -> set[int] | None:
    mine = [p for p in learner.model.parameters() if p.requires_grad]
    if not loss.requires_grad or not mine:
        return set()
    try:
        found = torch.autograd.grad(loss, mine, allow_unused=True)
    except Exception:  # a trial will say why
        return None
    return {id(p) for p, g in zip(mine, found, strict=True) if g is not None}


def _crashed(recorder: Recorder, names: dict[nn.Module, str], crash: Exception) -> Finding:
    node = recorder.root
    if recorder.failed is not None and recorder.failed[1] is crash:
        node = recorder.failed[0]
    return explain(*_title(node, names), "forward", crash)


def _title(node: Node, names: dict[nn.Module, str]) -> tuple[str, str]:
    """A layer's name and what it is."""
    if node.module is None:
        return node.name, "The meta-step"
    if isinstance(node.module, _Loss):
        return "loss_fn", "The loss"
    return names[node.module], type(node.module).__name__.lstrip("_")


def _trials(patient: Patient, root: Node, names: dict[nn.Module, str]) -> Iterator[Finding]:
    second = Search(patient, "second").over(root)
    # What has no second derivative is replaced in the whole, and so is looked at by itself as well.
    vmap = Search(patient, "vmap", broken=second).over(root, *second)
    once = second.keys() - vmap.keys()
    trace = Search(patient, "trace", broken=once, hopeless=vmap).over(root, *once)
    found: dict[Trial, dict[Node, Exception]] = {"second": second, "vmap": vmap, "trace": trace}
    told = set()
    for trial, culprits in found.items():
        for node, error in culprits.items():
            if (node, str(error)) not in told:
                told.add((node, str(error)))
                yield explain(*_title(node, names), trial, error)


def _diagnosis(found: Iterable[Finding], layers: int) -> Diagnosis:
    """One finding for each layer and problem, the gravest first."""
    kept: list[Finding] = []
    for f in sorted(found, key=lambda f: KINDS.index(f.kind)):
        told = [k for k in kept if k.layer == f.layer]
        same = any(k.problem == f.problem for k in told)
        # Whoever overwrites what is not his was told so; the trials saw what came of it.
        again = "in place" in f.problem and any("in place" in k.problem for k in told)
        discarded = "are discarded" in f.problem and any(k.kind == "slow" for k in told)
        if not (same or again or discarded):
            kept.append(f)
    return Diagnosis(tuple(kept), layers)
