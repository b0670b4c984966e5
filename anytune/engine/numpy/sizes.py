"""How large the engine's temporary pieces may be: speed against memory, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """In floats. tile, wide, head, scores are per worker; logits is shared.

    tile: dequantized rows of a linear, near a core's own cache. wide: dequantized columns of a group, for the
    backward. head: dequantized rows of the output head. scores: attention scores of one task. logits: what may
    be kept between the two passes of the cross-entropy. lanes: sums over tokens or the vocabulary that run side by
    side, each in arrays of its own (see attention.tasks_of and loss.py).
    """

    tile: int = 3 << 17
    wide: int = 1 << 20
    head: int = 1 << 19
    scores: int = 1 << 20
    logits: int = 1 << 23
    lanes: int = 8


SMALL = Sizes(tile=1 << 18, wide=1 << 19, head=1 << 18, scores=1 << 18, logits=0, lanes=4)
LEAN = Sizes(tile=1 << 17, wide=1 << 18, head=1 << 17, scores=1 << 18, logits=0, lanes=2)
