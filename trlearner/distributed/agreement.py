"""What ranks must agree on before they compute together, and what they tell each other of it."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trlearner.distributed.collective import Ranks, gather_rows
from trlearner.distributed.failure import LostRank, explained

PLAIN = (bool, int, float, str, type(None), enum.Enum)


class Header(NamedTuple):
    """What a rank tells the others before a step; whole numbers all."""

    failed: int = 0
    tasks: int = 0
    queries: int = 0  # of each task, padding included
    masked: int = 0
    options: int = 0  # the rest are fingerprints
    parameters: int = 0
    generator: int = 0


def exchange_headers(ranks: Ranks, header: Header) -> list[Header]:
    """Every rank's header."""
    rows = torch.tensor([header], dtype=torch.int64, device=ranks.device)
    found = gather_rows(ranks, rows, [1] * ranks.size, "headers").tolist()
    return [Header(*row) for row in found]


def tell(ranks: Ranks, value: Any) -> list[Any]:
    """Every rank's value, of any kind; for what happens rarely."""
    found: list[Any] = [None] * ranks.size
    with explained("telling each other"):
        dist.all_gather_object(found, value, group=ranks.group)
    return found


def options_of(learner: nn.Module, regularizer: nn.Module, steps: int) -> dict[str, str]:
    """What must be alike on all ranks, in words: a little at every step, all of it at the first.

    Args:
        learner: Adapts.
        regularizer: A `TRLearner`.
        steps: How many meta-steps were taken before.
    """
    options = vars(regularizer.options)
    annealed = {name: getattr(regularizer, name) for name in ("lam", "temperature")}
    found = {name: _in_words(value) for name, value in {**annealed, **options}.items()}
    found["training"] = f"learner {learner.training}, regularizer {regularizer.training}"
    found["gradients"] = "enabled" if torch.is_grad_enabled() else "disabled"
    found["meta-steps so far"] = str(steps)
    if steps == 0:
        for name, module in (("learner", learner), ("regularizer", regularizer)):
            found |= _settings(name, module)
    return found


REGULARIZER = "regularizer."


def parameters_of(learner: nn.Module, regularizer: nn.Module) -> dict[str, Tensor]:
    """All parameters, by their own names; those of the regularizer with `REGULARIZER` in front."""
    found: dict[str, Tensor] = dict(learner.named_parameters())
    return found | {REGULARIZER + n: p for n, p in regularizer.named_parameters()}


def fingerprint(value: Any) -> int:
    """A number that is the same for equal texts in all processes."""
    return zlib.crc32(value if isinstance(value, bytes) else repr(value).encode())


def fingerprints(named: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum of each tensor's bits, whatever the order of summation."""
    if not named:
        return {}
    sums = [_bits(t.detach()).sum(dtype=torch.int64) for t in named.values()]
    device = sums[0].device
    return dict(zip(named, torch.stack([s.to(device) for s in sums]).tolist(), strict=True))


def check_same(
    ranks: Ranks, headers: Sequence[Header], options: Mapping[str, str], bits: Mapping[str, int]
) -> None:
    """Refuse to go on with ranks that would compute different things.

    Raises:
        LostRank: Another rank has failed.
        ValueError: Naming what differs.
    """
    check_none_failed(ranks, [h.failed for h in headers])
    if len({h.options for h in headers}) > 1:
        told = tell(ranks, dict(options))
        names = dict.fromkeys(name for one in told for name in one)
        differing = {n: [one.get(n, "none") for one in told] for n in names}
        differing = {n: values for n, values in differing.items() if len(set(values)) > 1}
        lines = [f"  {n}: {_by_rank(values)}" for n, values in differing.items()]
        raise ValueError(
            "learner and regularizer must be set alike on all ranks, but these differ:\n"
            + "\n".join(lines)
            + "\nBuild both from the same configuration on every rank, and let every rank take the same "
            "steps; only the tasks may differ."
        )
    if len({h.parameters for h in headers}) > 1:
        seen = tell(ranks, dict(bits))
        apart = [n for n in seen[0] if len({one.get(n) for one in seen}) > 1]
        raise ValueError(
            f"parameters must be the same on all ranks, but {len(apart)} of {len(seen[0])} differ, first "
            f"{apart[0]!r}. At the start: wrap MetaStep in DistributedDataParallel, or call "
            "trlearner.distributed.broadcast(learner, reg). Later on, gradients were not summed: call "
            "ddp(batch), never ddp.module(batch); without DDP, call "
            "trlearner.distributed.sync_gradients(learner, reg) before every optimizer.step()."
        )
    if not any(h.tasks for h in headers):
        raise ValueError(
            "batch is None on all ranks: at least one rank must bring tasks. Pass None only on ranks "
            "that have none of a meta-batch's tasks."
        )


def check_none_failed(ranks: Ranks, failed: Sequence[int]) -> None:
    """Refuse to go on without a rank that has failed.

    Raises:
        LostRank: Naming it.
    """
    if any(failed):
        who = ", ".join(str(r) for r, one in enumerate(failed) if one)
        raise LostRank(
            f"rank {ranks.rank} of {ranks.size}: rank {who} raised an error in this step, so no rank can "
            "finish it. See that rank's own error, and start all ranks again from the last checkpoint."
        )


def _by_rank(values: Sequence[str]) -> str:
    return ", ".join(f"{value} on rank {r}" for r, value in enumerate(values))


def _in_words(value: Any) -> str:
    """The same in all processes, unlike the address of a function."""
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return repr(value)


def _settings(name: str, module: nn.Module) -> dict[str, str]:
    found = {name: type(module).__name__}
    for path, one in module.named_modules(prefix=name):
        for key, value in one.__dict__.items():
            if key[0] == "_" or key in ("training", "monitor", "options", "lam", "temperature"):
                continue
            if isinstance(value, PLAIN) or (callable(value) and not isinstance(value, nn.Module)):
                found[f"{path}.{key}"] = _in_words(value)
        for key, p in one.named_parameters(recurse=False):
            found[f"{path}.{key}"] = f"{list(p.shape)} of {p.dtype}"
    return found


def _bits(tensor: Tensor) -> Tensor:
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    if tensor.dtype.itemsize not in whole:
        return torch.view_as_real(tensor).contiguous().view(torch.int64)
    return tensor.contiguous().view(whole[tensor.dtype.itemsize])
