"""What an engine's own code takes when it runs dry, on arrays that are shapes only: bytes, counted as they come and go.

A Ledger counts in kinds. Of a kind that is given back to whoever asks next (torch's allocator: one kind for all) the
peak is what all of it took at once; where free buffers serve requests of their own size only (pools), each size is a
kind. Marks cut a run into segments, from which a longer run is put together: a layer that repeats need not run again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Segment:
    """Between two marks. change: units of each kind taken less given back; high: the most, over what there was when it
    began; flops: of its operations."""

    change: dict[Hashable, int] = field(default_factory=dict)
    high: dict[Hashable, int] = field(default_factory=dict)
    flops: float = 0.0


class Ledger:
    """What is taken now belongs to the segment that mark() began last."""

    def __init__(self) -> None:
        self._now = Segment()

    def mark(self) -> Segment:
        self._now = Segment()
        return self._now

    def take(self, kind: Hashable, units: int = 1) -> None:
        now = self._now
        there = now.change[kind] = now.change.get(kind, 0) + units
        if there > now.high.get(kind, 0):
            now.high[kind] = there

    def give(self, kind: Hashable, units: int = 1) -> None:
        change = self._now.change
        change[kind] = change.get(kind, 0) - units

    def touch(self, kind: Hashable, units: int) -> None:
        """Take and give back."""
        now = self._now
        there = now.change.get(kind, 0) + units
        if there > now.high.get(kind, 0):
            now.high[kind] = there

    def compute(self, flops: float) -> None:
        self._now.flops += flops


def peaks(segments: Iterable[Segment], within: bool = True) -> tuple[dict[Hashable, int], float]:
    """(most units of each kind, flops) of a run of these segments, one after another. within: not only where one ends
    and the next begins."""
    now: dict[Hashable, int] = {}
    most: dict[Hashable, int] = {}
    flops = 0.0
    for segment in segments:
        flops += segment.flops
        for kind, high in segment.high.items() if within else ():
            most[kind] = max(most.get(kind, 0), now.get(kind, 0) + high)
        for kind, change in segment.change.items():
            there = now[kind] = now.get(kind, 0) + change
            if there > most.get(kind, 0):
                most[kind] = there
    return most, flops


def some(pieces: Iterable) -> Sequence:
    """Of pieces in their order, which are as the second but for the first and the last, these three."""
    pieces = list(pieces)
    return pieces if len(pieces) < 4 else [*pieces[:2], pieces[-1]]
