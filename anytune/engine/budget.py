"""What an engine can give up for memory, as a planner sees it:
ways to hold weights and sizes of pieces, with their costs."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .dry import Ledger


@dataclass(frozen=True)
class Way:
    """One way to train. cost: of a step, as a fraction, over the fastest way; hold: how weights are held (a name of the
    engine's); sizes: of its temporary pieces; text: both in words. family: of one hold's ways those of which dearer
    ones take less."""

    cost: float
    hold: str
    sizes: Any
    text: str
    family: Hashable = None


class Budget(Protocol):
    """An engine's answer to budget(weights, memory)."""

    base: int  # bytes that are taken before training begins
    limit: int  # bytes that may be taken in all
    place: str  # whose memory it is, for messages
    ways: list[Way]

    def dry(self, way: Way, capacity: int) -> Dry:
        """The engine itself on arrays that are shapes only, for streams of up to `capacity` tokens."""


class Dry(Protocol):
    """What an engine that is run dry has beside its operations."""

    def counting(self) -> AbstractContextManager[Ledger]:
        """What is taken from now on is entered into this ledger, and nothing of the weights is in memory yet."""

    def total(self, most: dict[Hashable, int]) -> int:
        """Bytes of so many units of each of the ledger's kinds."""

    def lasting(self, sizes: Any) -> Hashable:
        """What of the sizes decides about arrays that outlast a layer; None: nothing."""
