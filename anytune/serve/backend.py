"""What a scheduler needs of something that computes: sequences in slots, each with adapters of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from anytune.adapter.adapter import Adapter

#: Which adapters act on a sequence: (digest, scale), sorted by digest, no scale 0. () is the base alone. Scales
#: multiply the adapter's own alpha / rank. Equal mixes compute the same, so it is what caches are keyed by.
Mix = tuple[tuple[str, float], ...]


def mix_of(scales: dict[str, float]) -> Mix:
    """scales: {digest: scale}."""
    return tuple(sorted((digest, float(scale)) for digest, scale in scales.items() if scale))


@dataclass(frozen=True)
class Piece:
    """New tokens of one slot. wanted: whether the logits after the last of them are asked for."""

    slot: int
    ids: Sequence[int]
    mix: Mix
    wanted: bool


class Backend(Protocol):
    """slots: sequences at once; context: tokens that each may have; lengths[slot]: tokens held of it.

    All methods but the constructor are called from one thread.
    """

    name: str
    slots: int
    context: int
    lengths: list[int]

    def feed(self, pieces: Sequence[Piece]) -> dict[int, np.ndarray]:
        """Append each piece to its slot -> {slot: float32 [vocab]} of the wanted ones. Raises UserError."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget a slot's tokens from `length` on, or more of them where a model cannot go back: see lengths."""

    def add(self, digest: str, adapter: Adapter) -> None:
        """Make an adapter known, so that mixes may name it. Raises UserError if it does not fit."""

    def remove(self, digest: str) -> None:
        """Forget an adapter that no slot's next piece names."""

    def embed(self, ids: Sequence[int], mix: Mix, slot: int) -> np.ndarray:
        """float32 [width]: the sum over the tokens of what the last norm gives. slot: a free one, empty afterwards."""

    def close(self) -> None: ...
