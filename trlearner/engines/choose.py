"""Which engine runs a batch."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from trlearner.engines import batched, channels_last, compiled, higher, loop
from trlearner.functional import random_state_kept
from trlearner.loss import check_decomposes
from trlearner.samples import Samples
from trlearner.seam import Engine, GradientTaskLearner, TaskLearner
from trlearner.types import LossFn
from trlearner.warn import warn

ENGINES = {
    engine.name: engine
    for engine in (
        higher.ENGINE,
        loop.ENGINE,
        channels_last.ENGINE,
        batched.ENGINE,
        compiled.ENGINE,
        compiled.TRACED,
    )
}
TOGETHER = (batched.ENGINE.name, *compiled.NAMES)
"""Engines that run all tasks at once."""
SELF_CHOSEN = ("auto", "tune")
"""Names that stand for whichever engine suits."""


def choose(
    learner: TaskLearner,
    name: str,
    samples: Samples,
    loss_fn: LossFn,
    masked: bool,
    planned_steps: int | None = None,
) -> Engine:
    """The engine that `name` asks for; ``"auto"`` decides by layers, device, plans and a trial.

    ``"auto"`` is ``batched``, except that it is ``loop`` where layers couple samples and tasks are
    masked, where convolutions adapt on a CPU (grouped convolution is slower there), and where the
    model cannot run under ``vmap``, which is tried once and reported; and ``compiled`` where enough
    steps are planned. ``"tune"`` is what `settle` made of it, until then as ``"auto"``.

    Raises:
        ValueError: There is no such engine, or it cannot run these samples.
    """
    check_name(name)
    if name in SELF_CHOSEN:
        settled = _settled.get(learner)
        if settled is None or (masked and learner.couples_samples()):
            settled = _decide(learner, samples, loss_fn, masked, planned_steps)
        name = settled
    if name in TOGETHER and masked:
        batched.check_masks(learner, name)
    return ENGINES[name]


def settle(learner: TaskLearner, name: str) -> None:
    """From now on, ``"auto"`` and ``"tune"`` are the engine of this name for this learner."""
    _settled[learner] = name


def settled(learner: TaskLearner) -> bool:
    """Whether it is known which engine ``"tune"`` is."""
    return learner in _settled


def check_name(name: str) -> None:
    """Refuse an engine that there is not.

    Raises:
        ValueError: Naming those that there are.
    """
    if name not in SELF_CHOSEN and name not in ENGINES:
        raise ValueError(
            f"engine must be 'auto', 'tune' or one of {sorted(ENGINES)}, got {name!r}."
        )


def check_loss(learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> None:
    """Refuse a loss that masks would change; tried once, on all real samples together.

    Raises:
        ValueError: As `trlearner.loss.check_decomposes`.
    """
    checked = _decomposing.setdefault(learner, weakref.WeakSet())
    known = isinstance(loss_fn, Hashable)
    if known and loss_fn in checked:
        return
    # Together, for the loss of one sample (or of one class) would show nothing.
    pairs = [samples.real(task) for task in range(len(samples))]
    x, y = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    one = Samples(x[None], y[None], ways=samples.ways)
    check_decomposes(loss_fn, _trial(learner, one, loss_fn, loop.ENGINE, steps=0)[0], y)
    if known:
        checked.add(loss_fn)


def _decide(
    learner: TaskLearner,
    samples: Samples,
    loss_fn: LossFn,
    masked: bool,
    planned_steps: int | None,
) -> str:
    if masked and learner.couples_samples():
        return "loop"
    if samples.x.device.type == "cpu" and _adapts_convolutions(learner):
        return "loop"
    tried = _vmappable.setdefault(learner, {})
    # Layers may run other code in evaluation mode.
    modes = tuple(module.training for module in learner.modules())
    if modes not in tried:
        tried[modes] = _runs_batched(learner, samples, loss_fn)
    if not tried[modes]:
        return "loop"
    compiles = torch.is_grad_enabled() and (planned_steps or 0) >= compiled.PAYS
    return "compiled" if compiles else "batched"


def _adapts_convolutions(learner: TaskLearner) -> bool:
    if not isinstance(learner, GradientTaskLearner):
        return False
    moved = {id(tensor) for tensor in learner.start(learner.state()).values()}
    return any(
        isinstance(module, _ConvNd) and any(id(p) in moved for p in module.parameters())
        for module in learner.modules()
    )


def _runs_batched(learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> bool:
    try:
        _trial(learner, samples[:2], loss_fn, batched.ENGINE, steps=1)
    except (RuntimeError, NotImplementedError) as error:
        # Either vmap cannot run the model, or the loop will raise the same where it is understood.
        warn(
            f"engine='auto' runs this learner with 'loop', for 'batched' failed: {error}. Pass "
            "engine='loop' to silence this."
        )
        return False
    return True


def _trial(
    learner: TaskLearner, samples: Samples, loss_fn: LossFn, engine: Engine, steps: int
) -> Tensor:
    """The predictions of a small meta-step that leaves no trace."""
    with torch.no_grad(), random_state_kept(samples.x):
        state = learner.state()
        features = engine.embed(learner, state, samples.x, samples.mask)
        fast = engine.adapt(learner, state, features, samples, loss_fn, steps)
        return engine.predict(learner, state, fast, features, samples.mask)


_settled: weakref.WeakKeyDictionary[TaskLearner, str] = weakref.WeakKeyDictionary()
_decomposing: weakref.WeakKeyDictionary[TaskLearner, weakref.WeakSet[LossFn]] = (
    weakref.WeakKeyDictionary()
)
_vmappable: weakref.WeakKeyDictionary[TaskLearner, dict[tuple[bool, ...], bool]] = (
    weakref.WeakKeyDictionary()
)
