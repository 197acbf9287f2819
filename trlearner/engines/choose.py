"""Which engine runs a batch."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from trlearner.base.functional import Busy, random_state_kept
from trlearner.base.types import LossFn
from trlearner.base.warn import warn
from trlearner.engines import batched, channels_last, compiled, higher, loop
from trlearner.engines.adapted import Engine, adapt
from trlearner.engines.blame import own_mistake
from trlearner.engines.task_learner import GradientTaskLearner, TaskLearner
from trlearner.tasks.loss import check_decomposes
from trlearner.tasks.nested import joined, sizes_after, unpacked
from trlearner.tasks.samples import Samples

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
SELF_CHOSEN = ("auto", "tune")
"""Names that stand for whichever engine suits."""
HEAVY = 2e8
"""Floating-point operations of one forward pass over all of a task's samples. From about so many on, a CPU is
quicker with one task's convolutions at a time, channels-last, than with what ``vmap`` makes of all tasks'."""
BULKY = 2**20
"""Bytes of one task's adapted parameters. From about so many on, a CPU waits for memory, and one task's at a
time stay nearer to it than all tasks'."""


def choose(
    learner: TaskLearner,
    name: str,
    samples: Samples,
    loss_fn: LossFn,
    masked: bool,
    seen: int | None = None,
) -> Engine:
    """The engine that `name` asks for; ``"auto"`` decides by layers, device and a trial.

    ``"auto"`` is ``batched``, except that it is ``loop`` where layers couple samples and tasks are
    masked, and where the model cannot run under ``vmap``, which is tried once and reported;
    ``channels_last`` where convolutions are large and on a CPU (`HEAVY`), or ``loop`` where those are
    not of images; and ``loop`` where many parameters adapt on a CPU (`BULKY`). ``"tune"`` is what
    `settle` made of it, until then as ``"auto"``.

    Args:
        learner: Whose tasks are to run.
        name: As the learner was given it.
        samples: The tasks' support samples.
        loss_fn: The inner loss.
        masked: Whether some samples are padding.
        seen: How many samples of each task run through the model; by default the support's.

    Raises:
        ValueError: There is no such engine, or it cannot run these samples.
    """
    check_name(name)
    check_recompute(learner, name)
    if name in SELF_CHOSEN:
        settled = _known(learner).settled
        if settled is None or (masked and learner.couples_samples()):
            seen = samples.x.shape[1] if seen is None else seen
            settled = _decided(learner, samples, loss_fn, masked, seen)
        name = settled
    engine = ENGINES[name]
    if engine.together and masked:
        batched.check_masks(learner, name)
        check_loss(learner, samples, loss_fn)
    return engine


def without_graph(engine: Engine) -> Engine:
    """An engine, or in place of one that compiles graphs `batched`, which computes the same at once."""
    return batched.ENGINE if engine.graphs else engine


def settle(learner: TaskLearner, name: str) -> None:
    """From now on, ``"auto"`` and ``"tune"`` are the engine of this name for this learner."""
    _known(learner).settled = name


def settled(learner: TaskLearner) -> bool:
    """Whether it is known which engine ``"tune"`` is."""
    return _known(learner).settled is not None


def check_name(name: str) -> None:
    """Refuse an engine that there is not.

    Raises:
        ValueError: Naming those that there are.
    """
    if not isinstance(name, str) or (name not in SELF_CHOSEN and name not in ENGINES):
        raise ValueError(
            f"engine must be 'auto', 'tune' or one of {sorted(ENGINES)}, got {name!r}."
        )


def recomputes(learner: TaskLearner) -> bool:
    """Whether the learner's inner steps are to be computed again in the backward pass."""
    return bool(getattr(learner, "recompute", False))


def check_recompute(learner: TaskLearner, name: str) -> None:
    """Refuse an engine that cannot compute inner steps again, where that is asked for.

    Raises:
        ValueError: With the ways out.
    """
    if not recomputes(learner) or name in SELF_CHOSEN:
        return
    if ENGINES[name].graphs:
        why = "makes one graph of all inner steps"
    elif name == higher.ENGINE.name:
        why = "leaves the inner loop to the higher package, which keeps every step"
    else:
        return
    raise ValueError(
        f"engine={name!r} {why}, so it cannot do what recompute=True asks for. Use engine='auto', 'tune', "
        "'batched', 'loop' or 'channels_last', or recompute=False."
    )


def check_loss(learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> None:
    """Refuse a loss that masks would change; tried once, on all real samples together.

    Raises:
        ValueError: As `trlearner.tasks.loss.check_decomposes`.
    """
    checked = _known(learner).decomposing
    known = isinstance(loss_fn, Hashable)
    if known and loss_fn in checked:
        return
    # Together, for the loss of one sample (or of one class) would show nothing.
    pairs = [samples.real(task) for task in range(len(samples))]
    x, y = (joined(torch.cat, parts) for parts in zip(*pairs, strict=True))
    one = Samples(x[None], y[None], ways=samples.ways)
    said = unpacked(_trial(learner, one, loss_fn, loop.ENGINE, steps=0), learner.layout, 2)
    check_decomposes(loss_fn, said[0], y)
    if known:
        checked.add(loss_fn)


def candidates(learner: TaskLearner, masked: bool) -> tuple[str, ...]:
    """The engines without a graph that ``"tune"`` times."""
    found = [loop.ENGINE.name]
    if any(isinstance(module, nn.Conv2d) for module in learner.modules()):
        found.append(channels_last.ENGINE.name)
    if not (masked and learner.couples_samples()):
        found.append(batched.ENGINE.name)
    return tuple(found)


def _decided(
    learner: TaskLearner, samples: Samples, loss_fn: LossFn, masked: bool, seen: int
) -> str:
    """As `_decide`, once for each kind of call."""
    modes = tuple(
        (m.training, *(p.requires_grad for p in m.parameters(recurse=False)))
        for m in learner.modules()
    )
    key = (masked, seen, sizes_after(samples.x, 2), samples.x.device.type, modes)
    known = _known(learner).decisions
    if key not in known:
        known[key] = _decide(learner, samples, loss_fn, masked, seen)
    return known[key]


def _decide(
    learner: TaskLearner, samples: Samples, loss_fn: LossFn, masked: bool, seen: int
) -> str:
    if masked and learner.couples_samples():
        return "loop"
    convolutions = [m for m in learner.modules() if isinstance(m, _ConvNd)]
    if convolutions and samples.x.device.type == "cpu":
        heavy = seen * work(learner, samples, loss_fn) > HEAVY
        if heavy and any(isinstance(m, nn.Conv2d) for m in convolutions):
            return "channels_last" if _runs("channels_last", learner, samples, loss_fn) else "loop"
        if heavy and _adapts(learner, convolutions):
            return "loop"
    if samples.x.device.type == "cpu" and _bytes(_moved(learner)) > BULKY:
        return "loop"
    return "batched" if _runs("batched", learner, samples, loss_fn) else "loop"


def _adapts(learner: TaskLearner, layers: Sequence[nn.Module]) -> bool:
    """Whether a parameter of these layers adapts."""
    moved = {id(tensor) for tensor in _moved(learner)}
    return any(id(p) in moved for layer in layers for p in layer.parameters())


def _moved(learner: TaskLearner) -> list[Tensor]:
    """What the inner loop moves, for one task."""
    if not isinstance(learner, GradientTaskLearner):
        return []
    return list(learner.start(learner.state()).values())


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def work(learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> float:
    """Floating-point operations of a forward pass, for each sample; counted once for each size."""
    known, size = _known(learner).work, sizes_after(samples.x, 1)
    if size not in known:
        with FlopCounterMode(display=False) as counter:
            _trial(learner, samples[:1], loss_fn, loop.ENGINE, steps=0)
        known[size] = counter.get_total_flops() / max(1, samples.x.shape[1])
    return known[size]


def _runs(name: str, learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> bool:
    """Whether the engine can run this learner, as it showed when it was tried once."""
    # Layers may run other code in evaluation mode.
    key = (name, tuple(module.training for module in learner.modules()))
    tried = _known(learner).runs
    if key not in tried:
        tried[key] = _try(name, learner, samples, loss_fn)
    return tried[key]


def _try(name: str, learner: TaskLearner, samples: Samples, loss_fn: LossFn) -> bool:
    try:
        _trial(learner, samples[:2], loss_fn, ENGINES[name], steps=1)
    except Busy:
        raise
    except (RuntimeError, NotImplementedError) as error:
        mistake = own_mistake(learner, loss_fn, {"batch.support": samples})
        if mistake is not None:
            raise mistake from error
        warn(
            f"engine='auto' runs this learner with 'loop', for {name!r} failed: "
            f"{str(error).rstrip(' .')}. Pass engine='loop' to silence this."
        )
        return False
    return True


def _trial(
    learner: TaskLearner, samples: Samples, loss_fn: LossFn, engine: Engine, steps: int
) -> Tensor:
    """The predictions of a small meta-step that leaves no trace."""
    with torch.no_grad(), random_state_kept(samples.x):
        models = adapt(engine, learner, learner.state(), samples, loss_fn, steps)
        return models.predict(models.embed(samples))


@dataclass
class _Known:
    """What was found out about a learner.

    Attributes:
        settled: The engine that ``"auto"`` and ``"tune"`` stand for, once it is settled.
        decisions: What ``"auto"`` chose, by kind of call.
        runs: Whether an engine can run it, by the engine's name and the modules' modes.
        work: Floating-point operations of a sample's forward pass, by the sample's size.
        decomposing: Losses that are means over samples.
    """

    settled: str | None = None
    decisions: dict[Hashable, str] = field(default_factory=dict)
    runs: dict[Hashable, bool] = field(default_factory=dict)
    work: dict[tuple[torch.Size, ...], float] = field(default_factory=dict)
    decomposing: weakref.WeakSet[LossFn] = field(default_factory=weakref.WeakSet)


def _known(learner: TaskLearner) -> _Known:
    return _all_known.setdefault(learner, _Known())


_all_known: weakref.WeakKeyDictionary[TaskLearner, _Known] = weakref.WeakKeyDictionary()
