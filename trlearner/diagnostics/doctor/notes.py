"""What needs no trial: statistics, in-place writes, convolutions, parameters without a gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from trlearner.base.functional import SEQUENTIAL, check_statistics, couples
from trlearner.diagnostics.doctor.explain import ONE_BY_ONE
from trlearner.diagnostics.doctor.finding import TOGETHER, Finding, Kind
from trlearner.diagnostics.doctor.record import Write

Name = Callable[[nn.Module], str]


COUPLING: dict[tuple[type[nn.Module], ...], tuple[str, str]] = {
    SEQUENTIAL: (
        "takes the samples of a task for steps of one sequence",
        "build it with batch_first=True and give it [samples, time, features]; nothing, if samples are "
        "to see each other.",
    ),
    (nn.Embedding, nn.EmbeddingBag): (
        "divides gradients by how often an index occurs among a task's samples",
        "nothing, unless tasks differ in size: then drop scale_grad_by_freq or use engine='auto'.",
    ),
    (nn.Module,): (
        "looks at the other samples of a task",
        "nothing, unless tasks differ in size: then use GroupNorm or engine='auto'.",
    ),
}
"""What layers that couple samples do, and what to do about it; the first kind that fits counts."""


def of_norms(model: nn.Module, name: Name, masked: bool) -> Iterator[Finding]:
    """Layers that couple samples, and evaluation mode without statistics."""
    for m in model.modules():
        layer, kind = name(m), type(m).__name__
        if isinstance(m, _NormBase) and not _has_statistics(m):
            yield Finding(
                layer,
                "fails",
                f"{kind} is in evaluation mode, but its running statistics were never updated "
                "(meta-training discards such updates).",
                "keep the model in training mode (.train()), build the layer with "
                "track_running_stats=False, or use GroupNorm.",
            )
        elif couples(m):
            does, fix = next(texts for kinds, texts in COUPLING.items() if isinstance(m, kinds))
            gravity: Kind = "note"
            problem = f"{kind} {does}."
            if masked:
                problem, gravity = f"{kind} {does}, and some of them are masked.", "slow"
                fix = f"use GroupNorm or tasks of one size, {ONE_BY_ONE}."
            yield Finding(layer, gravity, problem, fix, TOGETHER)


def of_embeddings(model: nn.Module, name: Name) -> Iterator[Finding]:
    """Embeddings whose second derivative is wrong."""
    for m in model.modules():
        if isinstance(m, nn.Embedding) and m.scale_grad_by_freq:
            yield Finding(
                name(m),
                "fails",
                "Embedding has scale_grad_by_freq=True, which torch leaves out of second derivatives.",
                "build it with scale_grad_by_freq=False, or use first_order=True.",
            )


def _has_statistics(layer: _NormBase) -> bool:
    try:
        check_statistics(layer)
    except ValueError:
        return False
    return True


WRITES: dict[str, tuple[Kind, str, str]] = {
    "buffer": (
        "note",
        "updates its buffer {0!r} in its forward; such updates are discarded.",
        "update it outside of the meta-step, if it matters.",
    ),
    "parameter": (
        "fails",
        "writes into its parameter {0!r} in place, behind the gradient's back.",
        "compute a new tensor and use that, e.g. `weight = self.weight.clamp(-1, 1)`.",
    ),
    "data": (
        "fails",
        "writes into the batch's {1} in place, so that every step sees others.",
        "pass inplace=False, or write `x = x * 2` for `x *= 2`.",
    ),
}


def of_writes(writes: Collection[Write], name: Name) -> Iterator[Finding]:
    """In-place writes into what belongs to the user or to the learner."""
    for write in writes:
        if (module := write.node.module) is not None:
            gravity, problem, fix = WRITES.get(write.what, WRITES["data"])
            problem = f"{type(module).__name__} {problem.format(write.name, write.what)}"
            yield Finding(name(module), gravity, problem, fix)


def of_convolutions(model: nn.Module, name: Name, moved: Collection[int]) -> Iterator[Finding]:
    """Convolutions that adapt on a CPU; `moved` has the ids of what adapts."""
    for m in model.modules():
        if isinstance(m, _ConvNd) and any(id(p) in moved and p.is_cpu for p in m.parameters()):
            better = "channels_last" if isinstance(m, nn.Conv2d) else "loop"
            yield Finding(
                name(m),
                "slow",
                f"{type(m).__name__} adapts on a CPU, where a large convolution of many tasks at once is "
                "slower than one task at a time.",
                f"nothing: engine='auto' takes {better!r} where it is large; a GPU runs 'batched'.",
                TOGETHER,
            )


def of_parameters(
    model: nn.Module, name: Name, ran: Collection[nn.Module], reached: Collection[int] | None
) -> Iterator[Finding]:
    """Parameters that are frozen, unused or cut off.

    Args:
        model: Whose they are.
        name: Names its modules.
        ran: Which of these ran.
        reached: The ids of parameters with a gradient; ``None`` where it is not known.
    """
    told: set[int] = set()
    frozen: dict[str, tuple[str, list[str], int]] = {}
    for m in model.modules():
        parts = {id(p) for p in m.parameters()}
        used = any(part in ran for part in m.modules())
        if reached is not None and parts and not used and not parts & (told | set(reached)):
            told |= parts
            yield Finding(
                name(m),
                "note",
                f"{type(m).__name__} never runs, so its parameters neither adapt nor learn.",
                "call it in the model's forward, or remove it.",
            )
        own = {n: p for n, p in m.named_parameters(recurse=False) if id(p) not in told}
        told |= {id(p) for p in own.values()}
        held = [n for n, p in own.items() if not p.requires_grad]
        if held:
            numbers = sum(own[n].numel() for n in held)
            frozen[name(m)] = type(m).__name__, held, numbers
        yield from _of_own(name(m), type(m).__name__, own, reached)
    if frozen:
        yield _of_frozen(model, frozen)


def _of_frozen(model: nn.Module, frozen: dict[str, tuple[str, list[str], int]]) -> Finding:
    """One note for all layers that hold frozen parameters: in fine-tuning that is nearly every layer."""
    names = list(frozen)
    kind, held, numbers = frozen[names[0]]
    problem = f"{kind} has {', '.join(held)} frozen"
    if len(names) > 1:
        numbers = sum(count for _, _, count in frozen.values())
        total = sum(p.numel() for p in model.parameters())
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        problem = f"{type(model).__name__} has {numbers:,} of {total:,} numbers frozen in {len(names)} layers"
        problem += f" ({some})"
    return Finding(
        names[0] if len(names) == 1 else "(model)",
        "note",
        f"{problem}, which neither adapt nor learn.",
        "call .requires_grad_() on them, if they should.",
    )


def _of_own(
    layer: str, kind: str, own: dict[str, nn.Parameter], reached: Collection[int] | None
) -> Iterator[Finding]:
    cut = [n for n, p in own.items() if p.requires_grad and id(p) not in (reached or ())]
    if cut and reached is not None:
        yield Finding(
            layer,
            "fails",
            f"{kind} runs, but no gradient of the loss reaches {', '.join(cut)}.",
            "look behind it for .detach(), .data, torch.no_grad() or argmax; remove what is unused.",
        )
