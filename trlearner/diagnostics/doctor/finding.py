"""What the doctor found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

Kind = Literal["fails", "slow", "note"]
KINDS: tuple[Kind, ...] = ("fails", "slow", "note")
EVERY = ("higher", "loop", "channels_last", "batched", "compiled")
TOGETHER = ("batched", "compiled")


@dataclass(frozen=True)
class Finding:
    """One layer, what is wrong with it, and what to do.

    Attributes:
        layer: Its name within the model; ``"(model)"`` for the model itself, ``"loss_fn"`` for the
            loss, ``"(meta-step)"`` for what lies between them.
        kind: ``"fails"``: no second-order step can work. ``"slow"``: works one task at a time only.
            ``"note"``: works, but perhaps not as expected.
        problem: What is wrong, beginning with the layer's type.
        fix: What to do about it.
        engines: The engines that are concerned.
    """

    layer: str
    kind: Kind
    problem: str
    fix: str
    engines: tuple[str, ...] = EVERY


@dataclass(frozen=True)
class Diagnosis(Sequence[Finding]):
    """All findings, the gravest first; ``print`` it to read them.

    Attributes:
        findings: One for each layer and problem.
        layers: How many layers the model has.

    Example:
        >>> print(Diagnosis((), layers=3))
        ok: nothing found in 3 layers
        >>> print(
        ...     Diagnosis(
        ...         (Finding("0", "slow", "Gate branches.", "Use torch.where.", TOGETHER),),
        ...         layers=3,
        ...     )
        ... )
        ok, but: 1 slow, in 3 layers
        1. slow: 0 (batched, compiled)
           Gate branches.
           Fix: Use torch.where.
    """

    findings: tuple[Finding, ...]
    layers: int

    @property
    def ok(self) -> bool:
        """Whether second-order meta-learning works: nothing fails."""
        return not any(f.kind == "fails" for f in self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self.findings[index]

    def __str__(self) -> str:
        where = f"in {self.layers} layer{'s' * (self.layers != 1)}"
        if not self.findings:
            return f"ok: nothing found {where}"
        counts = Counter(f.kind for f in self.findings)
        words = {"fails": "fail" if counts["fails"] > 1 else "fails", "slow": "slow"}
        words["note"] = "notes" if counts["note"] > 1 else "note"
        found = ", ".join(f"{counts[kind]} {words[kind]}" for kind in KINDS if counts[kind])
        lines = [f"{'ok, but' if self.ok else 'not ok'}: {found}, {where}"]
        for number, (first, layers) in enumerate(_alike(self.findings), 1):
            engines = "" if first.engines == EVERY else f" ({', '.join(first.engines)})"
            lines += [
                f"{number}. {first.kind}: {', '.join(layers)}{engines}",
                f"   {first.problem}",
                f"   Fix: {first.fix}",
            ]
        return "\n".join(lines)


def _alike(findings: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Layers with the same problem together, so that twelve attention layers are read once."""
    groups: dict[tuple[object, ...], tuple[Finding, list[str]]] = {}
    for f in findings:
        groups.setdefault((f.kind, f.problem, f.fix, f.engines), (f, []))[1].append(f.layer)
    return list(groups.values())
