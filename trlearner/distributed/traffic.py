"""What goes over the wire, counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Row:
    """Collectives of one purpose: how many, and what this rank gave to and got from the others."""

    calls: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class Traffic:
    """Bytes of payload that this rank exchanged with the others, by purpose.

    What one rank needs of another is counted once, as if it went straight there: a gathered row once
    for each other rank, a sum of n bytes over W ranks as 2 (W - 1) / W n. Headers of packets, and what
    a backend's algorithm sends more than once, are not in it.

    Example:
        >>> seen = Traffic()
        >>> seen.add("mixtures", sent=120, received=80)
        >>> seen.sent, str(seen).splitlines()[-1].split()
        (120, ['all', '1', '120', '80'])
    """

    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, purpose: str, sent: int, received: int) -> None:
        """Counts one collective."""
        row = self.rows.setdefault(purpose, Row())
        row.calls += 1
        row.sent += sent
        row.received += received

    @property
    def calls(self) -> int:
        """Collectives in all."""
        return sum(row.calls for row in self.rows.values())

    @property
    def sent(self) -> int:
        """Bytes that this rank gave to others."""
        return sum(row.sent for row in self.rows.values())

    @property
    def received(self) -> int:
        """Bytes that this rank got from others."""
        return sum(row.received for row in self.rows.values())

    def __str__(self) -> str:
        lines = [("purpose", "calls", "sent", "received")]
        lines += [(n, str(r.calls), str(r.sent), str(r.received)) for n, r in self.rows.items()]
        lines += [("all", str(self.calls), str(self.sent), str(self.received))]
        return "\n".join(f"{a:<24}{b:>8}{c:>14}{d:>14}" for a, b, c, d in lines)


_seen = [Traffic()]


def counted() -> Traffic:
    """What is counted now."""
    return _seen[0]


def traffic(reset: bool = True) -> Traffic:
    """What this process exchanged since the last call.

    Args:
        reset: Count from zero again; call it after every step for bytes per step.

    Example:
        >>> traffic().sent
        0
    """
    found = _seen[0]
    if reset:
        _seen[0] = Traffic()
    return found
